//! Numbers in, texts for people out.

/// With a comma between thousands.
pub fn whole(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of them, in words.
pub fn counted(n: u64, one: &str, several: &str) -> String {
    format!("{} {}", whole(n), if n == 1 { one } else { several })
}

/// Three decimals, fewer where there are three digits or more before the point.
pub fn number(value: f64) -> String {
    let n_decimals = match value.abs() {
        above if above >= 1000.0 => 0,
        above if above >= 100.0 => 1,
        _ => 3,
    };
    format!("{value:.n_decimals$}").replace('-', "−")
}

pub fn percent(n: u64, of: u64) -> String {
    percent_of(n as f64 / of.max(1) as f64)
}

pub fn percent_of(ratio: f64) -> String {
    format!("{:.2} %", ratio * 100.0)
}

pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(whole), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([-0.5, 52.7110, 202.04, 12_345.6].map(number), ["−0.500", "52.711", "202.0", "12346"]);
        assert_eq!(
            (counted(1, "shard", "shards"), counted(1200, "shard", "shards")),
            ("1 shard".into(), "1,200 shards".into())
        );
        assert_eq!((percent(1, 3).as_str(), percent(0, 0).as_str()), ("33.33 %", "0.00 %"));
    }
}
