"""What was measured, as tables in Markdown, as JSON, and as plots in SVG."""

import html
import json
import math
import os
import platform
import time

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLOURS = ["#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#dfab01", "#787774", "#e03e3e"]


def describe(options, columns, missing):
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{model}, {os.cpu_count()} cores, Linux {platform.release()}",
        "seconds": options.seconds,
        "rounds": options.rounds,
        "versions": {column: peers[0].read_version() for column, peers in columns.items()},
        "missing": missing,
    }


def write(options, data):
    os.makedirs(options.out, exist_ok=True)
    for table in data["tables"]:
        draw = render_bars if table["name"] in ("scenarios", "decisions", "memory") else render_lines
        write_file(options.out, f"{table['name']}.svg", draw(table))
    text = render(data)
    write_file(options.out, "tables.md", text + "\n")
    write_file(options.out, "results.json", json.dumps(data, indent=1))
    print(text)
    if options.document:
        with open(options.document) as file:
            before, _, rest = file.read().partition(BEGIN)
        after = rest.partition(END)[2]
        write_file("", options.document, f"{before}{BEGIN}\n{text}\n{END}{after}")


def write_file(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def render(data):
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    parts = [
        f"Measured {data['date']} on {data['machine']}: {versions}. {data['rounds']} bursts of {data['seconds']:g} s for each figure,"
        " in random order."
    ]
    if data["missing"]:
        parts.append(f"Not found: {', '.join(data['missing'])}.")
    parts += [render_table(table) for table in data["tables"]]
    if data["problems"]:
        parts.append("Left out:\n\n" + "\n".join(f"- {problem}" for problem in data["problems"]))
    return "\n\n".join(parts)


def choose_base(columns):
    return "nginx" if "nginx" in columns else columns[0]


def render_table(table):
    columns, base = table["columns"], choose_base(table["columns"])
    is_cpu = any("quartiles" in cell for row in table["rows"] for cell in row["cells"].values())
    what = f"{table['unit']}: median (quartiles)" + (f", × {base}" if len(columns) > 1 else "") if is_cpu else table["unit"]
    lines = [
        f"**{table['title']}**, {what}",
        "",
        "| | " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    notes = []
    # The samples of a soak are many: its plot has them all.
    step = max(1, math.ceil(len(table["rows"]) / 16))
    for row in table["rows"][::step]:
        cells = []
        for column in columns:
            cell = row["cells"].get(column)
            if cell is None:
                cells.append("–")
                continue
            text = cell.get("text")
            if text is None:
                low, high = cell["quartiles"]
                text = f"{format_micros(cell['value'])} ({format_micros(low)}–{format_micros(high)})"
                if column != base and base in row["cells"]:
                    text += f" **{cell['value'] / row['cells'][base]['value']:.2f}×**"
                # The proxy waits and the other side does not: more was not asked of it.
                if cell["proxy_busy"] < 0.9 and cell["others_busy"] > 0.9:
                    text += " \\*"
                    notes.append(f"{row['title']}, {column} (proxy {cell['proxy_busy']:.0%} busy)")
            cells.append(text)
        lines.append(f"| {row['title']} | " + " | ".join(cells) + " |")
    if notes:
        lines += ["", "\\* The load or the stand-ins were the bottleneck, not the proxy: " + "; ".join(notes) + "."]
    return "\n".join(lines)


def format_micros(micros):
    return f"{micros:,.0f}" if micros >= 100 else f"{micros:.1f}"


def svg(width, height, title, parts):
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/><text x="16" y="24" font-size="15">{html.escape(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def text(x, y, content, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(content)}</text>'


def render_bars(table):
    """A bar for each cell, as long as its share of the base's; rows without the base are left out."""
    columns, base = table["columns"], choose_base(table["columns"])
    rows = [row for row in table["rows"] if base in row["cells"]]
    cells = [row["cells"] for row in rows]
    ratios = [[(column, of[column]["value"] / of[base]["value"]) for column in columns if column in of] for of in cells]
    most = max((ratio for row in ratios for _, ratio in row), default=1)
    parts, y = [], 44
    for row, of_row in zip(rows, ratios):
        parts.append(text(16, y + 12, row["title"]))
        y += 18
        for column, ratio in of_row:
            length = 520 * ratio / most
            colour = COLOURS[columns.index(column) % len(COLOURS)]
            parts.append(f'<rect x="110" y="{y}" width="{length:.1f}" height="13" fill="{colour}"/>')
            parts.append(text(104, y + 11, column, "end") + text(116 + length, y + 11, f"{ratio:.2f}×"))
            y += 16
        y += 10
    return svg(720, y + 10, f"{table['title']}, × {base}", parts)


def render_lines(table):
    """A line for each column; logarithmic axes where the table says so. Zero is drawn at the end of such an axis."""
    log = table.get("log", "")
    points = [[(row["x"], row["cells"][column]["value"]) for row in table["rows"] if column in row["cells"]] for column in table["columns"]]
    scale_x, ticks_x = make_scale([x for line in points for x, _ in line], "x" in log, 70, 540)
    scale_y, ticks_y = make_scale([y for line in points for _, y in line] + ([] if "y" in log else [0]), "y" in log, 360, 50)
    parts = ['<path d="M70 50V360H540" fill="none" stroke="#999"/>']
    for tick in ticks_x:
        parts.append(text(scale_x(tick), 378, format_tick(tick), "middle"))
    parts.append(text(574, 378, table["x_title"]))
    for tick in ticks_y:
        parts.append(f'<path d="M70 {scale_y(tick):.1f}H540" stroke="#eee"/>' + text(64, scale_y(tick) + 4, format_tick(tick), "end"))
    for at, (column, line) in enumerate(zip(table["columns"], points)):
        colour = COLOURS[at % len(COLOURS)]
        path = " ".join(f"{scale_x(x):.1f},{scale_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<rect x="556" y="{54 + 20 * at}" width="12" height="12" fill="{colour}"/>' + text(574, 64 + 20 * at, column))
    return svg(720, 390, f"{table['title']}, {table['unit']}", parts)


def make_scale(values, logarithmic, low, high):
    """A function from a number to its place between `low` and `high`, and some five ticks."""
    least, most = min(values, default=0), max(values, default=1)
    if logarithmic:
        least = min((value for value in values if value > 0), default=1)
        first, last = math.floor(math.log10(least)), math.ceil(math.log10(max(most, least * 1.01)))
        ticks = [10.0**power for power in range(first, last + 1)]
        return lambda value: low + (high - low) * (math.log10(max(value, ticks[0])) - first) / (last - first), ticks
    step = 10 ** math.floor(math.log10(max(most - least, 1e-9) / 2))
    step *= 5 if (most - least) / step > 25 else 2 if (most - least) / step > 8 else 1
    first, last = math.floor(least / step), max(math.ceil(most / step), math.floor(least / step) + 1)
    ticks = [step * number for number in range(first, last + 1)]
    return lambda value: low + (high - low) * (value - ticks[0]) / (ticks[-1] - ticks[0]), ticks


def format_tick(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
