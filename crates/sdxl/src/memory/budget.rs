//! The memory that a run may take, and the notation for numbers of bytes.

use std::fmt;
use std::str::FromStr;

use super::system::{available, resident};

/// The memory of the whole process that a run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    bytes: Option<u64>,
    given: bool,
}

impl Budget {
    /// Makes a budget of the free memory, less an eighth of it that is left to the rest of the
    /// machine, plus what this process has already. Unlimited where the system does not say.
    pub fn free() -> Budget {
        Budget {
            bytes: available().map(|free| free - free / 8 + resident().unwrap_or(0)),
            given: false,
        }
    }

    /// So many bytes.
    pub fn of(bytes: u64) -> Budget {
        Budget {
            bytes: Some(bytes),
            given: true,
        }
    }

    /// In bytes; `None`: unlimited.
    pub fn bytes(self) -> Option<u64> {
        self.bytes
    }

    /// Whether somebody asked for it.
    pub fn is_given(self) -> bool {
        self.given
    }
}

/// Units and their names: the first of each is written.
const UNITS: [(&[&str], u64); 6] = [
    (&["GiB", "G", "Gi"], 1 << 30),
    (&["MiB", "M", "Mi"], 1 << 20),
    (&["KiB", "K", "Ki"], 1 << 10),
    (&["GB"], 1_000_000_000),
    (&["MB"], 1_000_000),
    (&["KB"], 1_000),
];

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an amount of memory; write a number and a unit, as in 4GiB, 4GB or \
                 4096MiB (G, M and K alone are GiB, MiB and KiB)"
            )
        };
        let text = text.trim();
        let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let (number, unit) = text.split_at(digits.ok_or_else(wrong)?);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim();
        let named =
            |(names, _): &&(&[&str], u64)| names.iter().any(|n| n.eq_ignore_ascii_case(unit));
        let (_, size) = UNITS.iter().find(named).ok_or_else(wrong)?;
        let bytes = number * *size as f64;
        if !(bytes >= 1.0 && bytes < 2f64.powi(60)) {
            return Err(wrong());
        }
        Ok(Budget::of(bytes as u64))
    }
}

/// A number of bytes, for people to read.
pub fn bytes(bytes: u64) -> impl fmt::Display {
    let mib = bytes as f64 / f64::from(1 << 20);
    if bytes < 1 << 30 {
        format!("{mib:.0} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (text, want) in [
            ("4GiB", 4 << 30),
            ("4 gib", 4 << 30),
            ("1.5G", 3 << 29),
            ("4GB", 4_000_000_000),
            ("4096MiB", 4 << 30),
            ("400M", 400 << 20),
            ("400mb", 400_000_000),
            ("900KB", 900_000),
        ] {
            assert_eq!(text.parse::<Budget>(), Ok(Budget::of(want)), "{text}");
        }
        for text in [
            "",
            "4",
            "GiB",
            "4096",
            "4 lb",
            "-1GiB",
            "0GiB",
            "1.2.3G",
            "1e3G",
            "99999999999G",
        ] {
            let error = text.parse::<Budget>().unwrap_err();
            assert!(error.contains("4GiB") && error.contains(text), "{error}");
        }
        assert_eq!(bytes(400 << 20).to_string(), "400 MiB");
        assert_eq!(bytes(3 << 29).to_string(), "1.50 GiB");
    }
}
