"""What was measured, as a table in Markdown and as plots in SVG."""

import os
import platform
import time


def describe_machine(bench):
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    versions = {peer.settings.get("build", peer.name): peer.read_version() for peer in bench.peers}
    memory = {}
    for peer in bench.peers:
        memory.setdefault(peer.settings.get("build", peer.name), [peer.idle_memory, peer.read_memory("VmHWM")])
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{model}, {os.cpu_count()} cores, Linux {platform.release()}",
        "seconds": bench.options.seconds,
        "rounds": bench.options.rounds,
        "versions": versions,
        "memory": memory,
    }


def render_table(data):
    """CPU microseconds for each request, with quartiles, and the ratio to nginx, or to the first column without it."""
    columns = data["columns"]
    base = "nginx" if "nginx" in columns else columns[0]
    lines = [
        f"{data['date']}, {data['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in data["versions"].items())
        + f"; {data['rounds']} bursts of {data['seconds']:g} s each, in random order.",
        "",
        f"CPU µs of the proxy for each request: median (quartiles), × {base}.",
        "",
        "| scenario | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    notes = []
    for name, results in data["scenarios"].items():
        cells = []
        for column in columns:
            result = results.get(column) or data["scenarios"].get(name.removesuffix("-own"), {}).get(column)
            if result is None:
                cells.append("–")
                continue
            low, high = result["quartiles"]
            cell = f"{format_micros(result['cpu_us'])} ({format_micros(low)}–{format_micros(high)})"
            reference = results.get(base) or data["scenarios"].get(name.removesuffix("-own"), {}).get(base)
            if reference and column != base:
                cell += f" **{result['cpu_us'] / reference['cpu_us']:.2f}×**"
            # The proxy idles while the other core does not: the load or the stand-ins are the limit.
            if result["proxy_busy"] < 0.9 and result["others_busy"] > result["proxy_busy"]:
                cell += " *"
                notes.append(f"{name}, {column}: proxy {result['proxy_busy']:.0%}, load and stand-ins {result['others_busy']:.0%}")
            cells.append(cell)
        lines.append(f"| {data['titles'][name]} | " + " | ".join(cells) + " |")
    megabytes = [f"{idle / 2**20:.0f} / {most / 2**20:.0f}" for idle, most in (data["memory"][column] for column in columns)]
    lines.append("| memory, MiB: at start / at most | " + " | ".join(megabytes) + " |")
    if notes:
        lines += ["", "\\* The proxy was not saturated while its peers' core was busier: the load or the stand-ins were the limit"
                  " there. " + "; ".join(notes) + "."]
    if data["missing"]:
        lines += ["", "Not here: " + ", ".join(data["missing"]) + ". `benches/install-peers` installs them."]
    return "\n".join(lines)


def format_micros(micros):
    return f"{micros:,.0f}" if micros >= 100 else f"{micros:.1f}"
