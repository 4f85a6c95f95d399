//! A1111's language: any text is read or refused, and printed it means the same at every step.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdxl::PromptSyntax;
use sdxl::prompt::Prompt;

const STEPS: usize = 5;

fuzz_target!(|text: &str| {
    let Ok(prompt) = Prompt::parse(text, PromptSyntax::A1111) else {
        return;
    };
    let printed = prompt.print(PromptSyntax::A1111);
    let again = Prompt::parse(&printed, PromptSyntax::A1111).expect("what was printed is read");
    for step in 0..STEPS {
        // formatted, because a weight that is not a number does not equal itself
        let (read, again) = (prompt.at(step, STEPS), again.at(step, STEPS));
        assert_eq!(format!("{read:?}"), format!("{again:?}"), "{printed:?}");
    }
    let translated = prompt.print(PromptSyntax::Compel);
    assert!(Prompt::parse(&translated, PromptSyntax::Compel).is_ok());
    prompt.print(PromptSyntax::Plain);
});
