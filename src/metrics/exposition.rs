//! The two formats of `/metrics`: Prometheus' text format 0.0.4, and OpenMetrics 1.0.0 for who asks for it.

use hyper::header::{ACCEPT, HeaderMap};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// OpenMetrics where `Accept` names it and does not prefer plain text; the text format otherwise.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let (mut open_metrics, mut text) = (0.0_f32, 0.0_f32);
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |weight| weight.trim().parse().unwrap_or(0.0));
            if kind.eq_ignore_ascii_case("application/openmetrics-text") {
                open_metrics = open_metrics.max(weight);
            } else if kind.eq_ignore_ascii_case("text/plain") {
                text = text.max(weight);
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Self::OpenMetrics } else { Self::Text }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The text format 0.0.4 of what the encoder writes as OpenMetrics. The samples are the same in both; only here are counters
/// called by the name of their samples, with `_total`, and there are neither units nor an end mark.
pub(super) fn to_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take().filter(|(helped, _)| *helped == name) {
                out.push_str(&format!("# HELP {name}{suffix} {text}\n"));
            }
            out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &[&str], expected: Format) {
        let headers = accept.iter().map(|value| (ACCEPT, value.parse().unwrap())).collect();
        assert_eq!(Format::accepted(&headers), expected, "{accept:?}");
    }

    #[test]
    fn open_metrics_format_needs_accept_header() {
        check(&[], Format::Text);
        check(&["*/*"], Format::Text);
        check(&["text/plain;version=0.0.4"], Format::Text);
        check(&["text/html, application/json"], Format::Text);
        check(&["application/openmetrics-text"], Format::OpenMetrics);
        check(&["text/plain", "Application/OpenMetrics-Text; version=1.0.0"], Format::OpenMetrics);
        check(&["application/openmetrics-text;q=0"], Format::Text);
        check(&["application/openmetrics-text;q=0.5, text/plain;q=0.7"], Format::Text);
        check(&["application/openmetrics-text;q=wrong"], Format::Text);
        // Prometheus 2.42 and 3.5.
        check(
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
               text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            Format::OpenMetrics,
        );
        check(
            &["application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
               text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"],
            Format::OpenMetrics,
        );
    }

    #[test]
    fn text_format_names_counters_with_total() {
        let open_metrics = "# HELP a Things.\n# TYPE a counter\na_total{x=\"# TYPE b counter\"} 1\n\
                            # HELP b_seconds Times.\n# TYPE b_seconds gauge\n# UNIT b_seconds seconds\nb_seconds 0.5\n# EOF\n";
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"# TYPE b counter\"} 1\n\
                    # HELP b_seconds Times.\n# TYPE b_seconds gauge\nb_seconds 0.5\n";
        assert_eq!(to_text(open_metrics), text);
    }
}
