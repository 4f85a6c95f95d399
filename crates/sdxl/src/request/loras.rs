//! The LoRAs that the prompts of a request ask for by name.

use super::Request;
use crate::error::{Error, Result};
use crate::prompt::{LoraUse, Prompt};

impl Request {
    /// The LoRAs that its prompts (the positive ones) ask for, in the order in which they are
    /// named. They change the networks, so all pictures of a request have the same.
    ///
    /// # Errors
    /// [`Error::Request`] for prompts that cannot be read, and for two that ask for different
    /// ones.
    pub fn loras(&self) -> Result<Vec<LoraUse>> {
        let of = |text: Option<&String>| -> Result<Vec<LoraUse>> {
            text.map_or(Ok(Vec::new()), |text| {
                Ok(Prompt::parse(text, self.prompt_syntax)?.loras().to_vec())
            })
        };
        let mut all: Option<Vec<LoraUse>> = None;
        for (i, prompt) in self.prompt.iter().enumerate() {
            let second = self
                .prompt_2
                .get(if self.prompt_2.len() == 1 { 0 } else { i });
            let mut loras = of(Some(prompt))?;
            let of_second = of(second).map_err(|error| error.of_field("prompt", "prompt_2"));
            loras.extend(of_second?);
            match &all {
                None => all = Some(loras),
                Some(first) if same(first, &loras) => {}
                Some(first) => {
                    let message = format!(
                        "the first asks for {} and number {} for {}",
                        names(first),
                        i + 1,
                        names(&loras)
                    );
                    return Err(Error::request("prompt", message).with_hint(
                        "LoRAs change the whole model, so make these pictures one after the other",
                    ));
                }
            }
        }
        Ok(all.unwrap_or_default())
    }
}

/// Whether two prompts ask for the same, in whatever order.
fn same(a: &[LoraUse], b: &[LoraUse]) -> bool {
    let sorted = |loras: &[LoraUse]| {
        let mut sorted = loras.to_vec();
        sorted.sort_by(|a, b| {
            (a.name.cmp(&b.name))
                .then(a.weight.total_cmp(&b.weight))
                .then(
                    a.text_weight
                        .unwrap_or(a.weight)
                        .total_cmp(&b.text_weight.unwrap_or(b.weight)),
                )
                .then_with(|| {
                    let (a, b) = (&a.block_weights, &b.block_weights);
                    a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)
                })
        });
        sorted
    };
    sorted(a) == sorted(b)
}

/// Names the LoRAs and their weights, for a message.
fn names(loras: &[LoraUse]) -> String {
    if loras.is_empty() {
        return "no LoRA".into();
    }
    let each = |lora: &LoraUse| {
        let blocks = match lora.block_weights.is_empty() {
            true => String::new(),
            false => format!(" with lbw={:?}", lora.block_weights),
        };
        match lora.text_weight {
            Some(text) => format!("`{}` at {text} and {}{blocks}", lora.name, lora.weight),
            None => format!("`{}` at {}{blocks}", lora.name, lora.weight),
        }
    };
    let list: Vec<String> = loras.iter().map(each).collect();
    format!("the LoRA {}", list.join(" and "))
}

#[cfg(test)]
mod tests {
    use crate::{PromptSyntax, Request};

    fn request(prompts: &[&str], prompt_2: &[&str]) -> Request {
        let list = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
        Request {
            prompt: list(prompts),
            prompt_2: list(prompt_2),
            prompt_syntax: PromptSyntax::A1111,
            ..Request::default()
        }
    }

    #[test]
    fn all_prompts_ask_for_the_same() {
        let names = |request: &Request| -> Vec<(String, f64)> {
            let loras = request.loras().unwrap();
            loras.into_iter().map(|l| (l.name, l.weight)).collect()
        };
        let one = request(
            &["a <lora:x:0.5> cat <lora:y>", "<lora:y:1>a dog<lora:x:.5>"],
            &[],
        );
        assert_eq!(
            names(&one),
            [("x".to_string(), 0.5), ("y".to_string(), 1.0)]
        );
        let second = request(&["a cat", "a dog"], &["<lora:z:2> snow"]);
        assert_eq!(names(&second), [("z".to_string(), 2.0)]);
        assert!(names(&request(&[], &[])).is_empty());
        for prompts in [
            ["a <lora:x:0.5>", "a cat"],
            ["a cat", "a <lora:x:0.5>"],
            ["a <lora:x:0.5>", "a <lora:x:0.6>"],
            ["a <lora:x:0.5:0.6>", "a <lora:x:0.6>"],
            ["a <lora:x:0.5:lbw=OUTD>", "a <lora:x:0.5>"],
        ] {
            let error = request(&prompts, &[]).loras().unwrap_err().to_string();
            assert!(
                error.contains("`x` at") && error.contains("number 2"),
                "{error}"
            );
        }
        // In Compel's language that is text.
        let compel = Request {
            prompt_syntax: PromptSyntax::Compel,
            ..request(&["a <lora:x:0.5> cat", "a dog"], &[])
        };
        assert!(names(&compel).is_empty());
    }
}
