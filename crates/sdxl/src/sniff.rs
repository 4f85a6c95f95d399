//! Recognition of files that are something else than their name says.

/// Says what `file` is, if it is something that people get in the place of the file that they wanted:
/// the end of a sentence that begins with the file's name, with what to do.
pub(crate) fn impostor(file: &[u8]) -> Option<&'static str> {
    let start = &file[..file.len().min(1024)];
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let begins = |with: &str| {
        text.get(..with.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(with))
    };
    if begins("version https://git-lfs") {
        return Some(
            "this is a Git LFS pointer, not the file itself; run `git lfs pull` in the checkpoint's \
             folder or download the file again",
        );
    }
    if begins("<!doctype") || begins("<html") || begins("<head") || begins("<?xml") {
        return Some(
            "this is a web page, not the file itself: a download often ends so where the site asks \
             for a login, an accepted licence or a click first; open the address in a browser and \
             download the file from there, or with a token (`HF_TOKEN`)",
        );
    }
    if begins("{\"error\"") || begins("{\"message\"") || begins("{\"detail\"") {
        return Some(
            "this is a server's answer that the file could not be had, saved under the file's name; \
             open it in an editor to read why, and download the file again",
        );
    }
    let answers = [
        "entry not found",
        "invalid username",
        "repository not found",
        "access to model",
    ];
    if answers.into_iter().any(begins) {
        return Some(
            "this is a server's answer that the file could not be had, saved under the file's name; \
             download the file again",
        );
    }
    None
}

/// Whether `file` is one that Python's pickle wrote, alone or in torch's archive.
pub(crate) fn is_pickle(file: &[u8]) -> bool {
    // Protocol 2 to 5, or a ZIP archive, which torch has written since 1.6.
    file.starts_with(b"PK\x03\x04") || matches!(file, [0x80, 2..=5, ..])
}
