//! Choices in the prompts of a request, made before anything else: every picture gets its own.

use std::path::Path;

use super::Request;
use crate::error::Result;
use crate::pipeline::fresh_seed;
use crate::prompt::wildcards::{expand, has_wildcards};

impl Request {
    /// Replaces wildcards (see [`crate::prompt::wildcards`]) in all prompts by what the seeds
    /// choose; `folder` holds the files of `__name__`. Where there are any, each picture becomes a
    /// prompt of its own, chosen by its own seed, or by the one seed plus the picture's number;
    /// the pictures' noise stays what it was. A request without wildcards stays as it is.
    ///
    /// # Errors
    /// Everything that [`Request::check`] and [`expand`] refuse.
    pub fn expand_wildcards(&mut self, folder: Option<&Path>) -> Result<()> {
        self.check()?;
        let lists = [
            &self.prompt,
            &self.prompt_2,
            &self.negative_prompt,
            &self.negative_prompt_2,
        ];
        if !lists.into_iter().flatten().any(|text| has_wildcards(text)) {
            return Ok(());
        }
        if self.seed.is_empty() {
            self.seed.push(fresh_seed());
        }
        let (images, each) = (self.images(), self.num_images);
        let seeds: Vec<u64> = (0..images)
            .map(|image| match self.seed[..] {
                [one] => one.wrapping_add(image as u64),
                _ => self.seed[image],
            })
            .collect();
        let chosen = |list: &[String], positive: bool| -> Result<Vec<String>> {
            if list.is_empty() {
                return Ok(Vec::new());
            }
            (seeds.iter().enumerate())
                .map(|(image, &seed)| {
                    let prompt = if list.len() == 1 { 0 } else { image / each };
                    // Another stream, so that both sides do not always choose alike.
                    let seed = if positive { seed } else { !seed };
                    expand(&list[prompt], folder, seed)
                })
                .collect()
        };
        let prompt = chosen(&self.prompt, true)?;
        let prompt_2 = chosen(&self.prompt_2, true)?;
        let negative_prompt = chosen(&self.negative_prompt, false)?;
        let negative_prompt_2 = chosen(&self.negative_prompt_2, false)?;
        *self = Request {
            prompt,
            prompt_2,
            negative_prompt,
            negative_prompt_2,
            num_images: 1,
            ..self.clone()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prompt: &str, seed: &[u64]) -> Request {
        Request {
            prompt: vec![prompt.into()],
            negative_prompt: vec!["blurry".into()],
            num_images: 6,
            seed: seed.to_vec(),
            ..Request::default()
        }
    }

    #[test]
    fn every_picture_chooses_by_its_seed() {
        let mut first = request("a {red|green|blue} ball", &[7]);
        first.expand_wildcards(None).unwrap();
        assert_eq!((first.prompt.len(), first.num_images), (6, 1));
        assert_eq!(first.negative_prompt, vec!["blurry"; 6]);
        assert_eq!(first.seed, [7]);
        assert!(first.prompt.iter().any(|p| *p != first.prompt[0]));
        first.check().unwrap();

        // The second picture of seed 7 and the first of seed 8 see the same prompt.
        let mut second = request("a {red|green|blue} ball", &[8, 1, 2, 3, 4, 5]);
        second.expand_wildcards(None).unwrap();
        assert_eq!(second.prompt[0], first.prompt[1]);

        let mut unseeded = request("a {red|green} ball", &[]);
        unseeded.expand_wildcards(None).unwrap();
        assert_eq!(unseeded.seed.len(), 1);
    }

    #[test]
    fn without_wildcards_nothing_changes() {
        let mut plain = request("a red ball", &[7]);
        plain.expand_wildcards(None).unwrap();
        assert_eq!(plain, request("a red ball", &[7]));
    }
}
