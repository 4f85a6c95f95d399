//! Compel's language: any text is read or refused, and what was read can be printed in any language.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdxl::PromptSyntax;
use sdxl::prompt::Prompt;

fuzz_target!(|text: &str| {
    let Ok(prompt) = Prompt::parse(text, PromptSyntax::Compel) else {
        return;
    };
    prompt.at(0, 1);
    let printed = prompt.print(PromptSyntax::Compel);
    assert!(Prompt::parse(&printed, PromptSyntax::Compel).is_ok());
    let translated = prompt.print(PromptSyntax::A1111);
    assert!(Prompt::parse(&translated, PromptSyntax::A1111).is_ok());
    prompt.print(PromptSyntax::Plain);
});
