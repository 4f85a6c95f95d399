//! Python's definitions of a blank, a digit and a number: the libraries of the prompt languages are
//! written in Python.

/// `str.isspace`, which is also `\s` of its regular expressions.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `\w` of its regular expressions.
pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `string.whitespace`.
pub(super) fn is_ascii_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// The zeros of Unicode's decimal digits (general category Nd, Unicode 14); 1 to 9 follow each.
const ZEROS: [u32; 66] = [
    0x0030, 0x0660, 0x06f0, 0x07c0, 0x0966, 0x09e6, 0x0a66, 0x0ae6, 0x0b66, 0x0be6, 0x0c66, 0x0ce6,
    0x0d66, 0x0de6, 0x0e50, 0x0ed0, 0x0f20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80,
    0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0,
    0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0,
    0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0,
    0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// The value of a decimal digit of any script, `\d`.
pub(super) fn digit(c: char) -> Option<u8> {
    let code = c as u32;
    let below = ZEROS.partition_point(|zero| *zero <= code);
    let value = code - ZEROS[below.checked_sub(1)?];
    u8::try_from(value).ok().filter(|value| *value < 10)
}

/// `float(text)` for text without blanks: digits of any script, `_` between digits, `inf`, `nan`.
pub(super) fn float(text: &str) -> Option<f64> {
    let mut ascii = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut after_digit = false;
    while let Some(c) = chars.next() {
        match digit(c) {
            Some(value) => ascii.push(char::from(b'0' + value)),
            None if c == '_' => {
                let before_digit = chars.peek().is_some_and(|next| digit(*next).is_some());
                if !(after_digit && before_digit) {
                    return None;
                }
            }
            None => ascii.push(c),
        }
        after_digit = digit(c).is_some();
    }
    ascii.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_any_script_make_numbers() {
        assert_eq!(float("٣.٥"), Some(3.5));
        assert_eq!(float("1_0"), Some(10.0));
        assert_eq!(float("1__0"), None);
        assert_eq!(float("_1"), None);
        assert_eq!(float("1_"), None);
        assert_eq!(float("-Infinity"), Some(f64::NEG_INFINITY));
        assert_eq!(float("1e-5"), Some(1e-5));
        assert_eq!(float(""), None);
        assert_eq!(digit('\u{0}'), None);
        assert_eq!(digit('²'), None);
        assert_eq!(digit('\u{1fbf9}'), Some(9));
        assert_eq!(digit('\u{1fbfa}'), None);
    }
}
