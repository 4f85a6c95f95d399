//! x
use sdxl::PromptSyntax;
use sdxl::prompt::*;
use std::io::BufRead;
fn main() {
    for line in std::io::stdin().lock().lines() {
        let s: String = serde_json::from_str(&line.unwrap()).unwrap();
        match Prompt::parse(&s, PromptSyntax::Compel) {
            Ok(p) => println!(
                "{}",
                serde_json::json!({"r": p.at(0,1).parts, "l": p.loras()})
            ),
            Err(e) => println!("{}", serde_json::json!({"e": e.to_string()})),
        }
    }
}
