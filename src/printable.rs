// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Text that others wrote – names of files, marks on them, what a frontend or another daemon says –
//! made fit for a terminal and a log.

use std::borrow::Cow;

use serde_json::Value;

/// The text on one line: characters that a terminal acts on, or that end a line, are escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for one in text.chars() {
        match is_printable(one) {
            true => escaped.push(one),
            false => escaped.extend(one.escape_debug()),
        }
    }
    Cow::Owned(escaped)
}

/// Beyond ASCII what Unicode has as printable; it has neither characters that turn the direction of
/// text around nor separators of lines among them.
fn is_printable(one: char) -> bool {
    if one.is_ascii() { !one.is_ascii_control() } else { one.escape_debug().len() == 1 }
}

/// The same for each line of a text that has its line breaks from us.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().flat_map(|line| [printable(line), Cow::Borrowed("\n")]).collect()
}

/// The same for all text of a value.
pub(crate) fn printable_value(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(printable(&text).into_owned()),
        Value::Array(all) => all.into_iter().map(printable_value).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (name, printable_value(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_that_a_terminal_would_act_on_is_escaped() {
        assert_eq!(
            printable("a\x1b[2J\nb\r\t\x07\u{9b}c\u{202e}\u{2028}"),
            r"a\u{1b}[2J\nb\r\t\u{7}\u{9b}c\u{202e}\u{2028}"
        );
        let fine = r#"/srv/ü "x" \n – ├─ 日本"#;
        assert!(matches!(printable(fine), Cow::Borrowed(text) if text == fine));
        assert_eq!(printable_lines("a\x1b\nb\n"), "a\\u{1b}\nb\n");
    }

    #[test]
    fn value_has_all_of_its_text_escaped_and_nothing_else() {
        let value = json!({"a": ["x\ny", {"b": "\x1b"}], "n": u64::MAX, "none": null});
        let escaped = json!({"a": ["x\\ny", {"b": "\\u{1b}"}], "n": u64::MAX, "none": null});
        assert_eq!(printable_value(value), escaped);
    }
}
