// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers in the units that Grafana has names for.

/// `number` as Grafana shows it in `unit`, nearly.
pub(super) fn shown(number: f64, unit: &str) -> String {
    match unit {
        "bytes" => scaled(number, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"]),
        "s" if number != 0.0 && number.abs() < 1e-3 => format!("{} µs", rounded(number * 1e6)),
        "s" if number != 0.0 && number.abs() < 1.0 => format!("{} ms", rounded(number * 1e3)),
        "s" => format!("{} s", rounded(number)),
        "percentunit" => format!("{}%", rounded(number * 100.0)),
        "reqps" => scaled(number, 1000.0, &[" req/s", "K req/s", "M req/s"]),
        "ops" => scaled(number, 1000.0, &[" ops/s", "K ops/s", "M ops/s"]),
        _ => scaled(number, 1000.0, &["", " K", " Mil", " Bil"]),
    }
}

fn scaled(mut number: f64, factor: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for larger in units {
        if number.abs() < factor {
            break;
        }
        number /= factor;
        unit = larger;
    }
    rounded(number) + unit
}

/// With three digits that count, and no zeroes behind them.
fn rounded(number: f64) -> String {
    let decimals = match number.abs() {
        0.0 => 0,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    let text = format!("{number:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

#[test]
fn numbers_have_three_digits_and_their_unit() {
    let cases = [
        (0.0, "short", "0"),
        (1234.0, "short", "1.23 K"),
        (3.0 * 1024.0 * 1024.0, "bytes", "3 MiB"),
        (0.000_25, "s", "250 µs"),
        (0.0123, "s", "12.3 ms"),
        (0.5, "percentunit", "50%"),
        (42.04, "reqps", "42 req/s"),
    ];
    for (number, unit, expected) in cases {
        assert_eq!(shown(number, unit), expected);
    }
}
