//! How prompts are read: Compel's language against the Compel library, and A1111's against the
//! examples of the web UI's documentation. A1111's reader is no package that could be recorded, so its
//! expected values were written by hand after the wiki's page "Features".

use sdxl::PromptSyntax;
use sdxl::prompt::{Join, Prompt, PromptBody, PromptNode, ResolvedContent, WeightedSpan};
use sdxl_testing::golden;
use serde_json::{Value, json};

/// Where the library stumbles over its own counting and the crate does what the text plainly says.
const PLAIN: [&str; 1] = [r#"("a cat", ()).blend(1, 2)"#];

fn compel(text: &str) -> Result<Prompt, sdxl::Error> {
    Prompt::parse(text, PromptSyntax::Compel)
}

/// What `.swap(...)` would show instead, one list of spans each. The crate encodes the original only
/// and keeps the tree, so its weights are multiplied out here.
fn swaps(prompt: &Prompt) -> Vec<Value> {
    fn flatten(nodes: &[PromptNode], scale: f64, out: &mut Vec<(String, f64)>) {
        for node in nodes {
            match node {
                PromptNode::Text(text) => match out.last_mut() {
                    Some((before, weight)) if *weight == scale => *before += &format!(" {text}"),
                    _ => out.push((text.clone(), scale)),
                },
                PromptNode::Group { weight, children } => flatten(children, scale * weight, out),
                other => panic!("{other:?} in a swap"),
            }
        }
    }
    fn find(nodes: &[PromptNode], scale: f64, found: &mut Vec<Value>) {
        for node in nodes {
            match node {
                PromptNode::Group { weight, children } => find(children, scale * weight, found),
                PromptNode::Swap { edited, .. } => {
                    let mut spans = Vec::new();
                    flatten(edited, scale, &mut spans);
                    if spans.is_empty() {
                        spans.push((String::new(), 1.0));
                    }
                    found.push(spans.into_iter().map(span).collect());
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    for item in prompt.items() {
        let PromptBody::Text(nodes) = &item.body else {
            continue;
        };
        find(nodes, 1.0, &mut found);
    }
    found
}

fn span((text, weight): (String, f64)) -> Value {
    json!({"text": {"text": text, "weight": weight}})
}

#[test]
fn compel_prompts_are_read_as_by_the_library() {
    let file = std::fs::read_to_string(golden("prompts.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 150, "{}", cases.len());
    let mut different = Vec::new();
    for case in cases {
        let text = case["prompt"].as_str().unwrap();
        let read = match compel(text) {
            Ok(read) => read,
            Err(_) if case.get("error").is_some() => continue,
            // Compel reads it, and makes infinities of it afterwards.
            Err(error)
                if error
                    .to_string()
                    .contains("divided by their sum, which is 0") =>
            {
                continue;
            }
            Err(error) => {
                different.push(format!("{text:?} is refused: {error}"));
                continue;
            }
        };
        if case["error"] == "ParsingException" && PLAIN.contains(&text) {
            continue;
        }
        // Compel refuses them; here they are the blanks that they mean.
        if case["error"] == "ParseException" && text.contains(['\u{b}', '\u{c}']) {
            let blanks = compel(&text.replace(['\u{b}', '\u{c}'], " ")).unwrap();
            assert_eq!(read.at(0, 1), blanks.at(0, 1), "{text:?}");
            continue;
        }
        let ours = json!({
            "resolved": read.at(0, 1),
            "loras": read.loras(),
            "swaps": swaps(&read),
        });
        // the JSON reader may be off in the last bit of a number: in both, if in one
        let ours: Value = serde_json::from_str(&ours.to_string()).unwrap();
        let library = json!({
            "resolved": case["resolved"],
            "loras": case.get("loras").unwrap_or(&json!([])),
            "swaps": case.get("swaps").unwrap_or(&json!([])),
        });
        if ours != library {
            different.push(format!("{text:?}\n  {ours}\n  {case}"));
        }
    }
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn a_blend_whose_weights_sum_to_nothing_is_refused() {
    for (weights, refused) in [
        ("1, -1", true),
        ("0.1, 0.2, -0.3", true),
        ("0, 0", true),
        ("1, -1, no_normalize", false),
        ("1, -0.9", false),
        ("0, 1", false),
    ] {
        let texts = match weights.matches(", ").count() - weights.matches("no_").count() {
            1 => r#""a cat", "a dog""#,
            _ => r#""a cat", "a dog", "a fox""#,
        };
        let read = compel(&format!("({texts}).blend({weights})"));
        match read {
            Ok(_) => assert!(!refused, "{weights}"),
            Err(error) => {
                assert!(refused, "{weights}: {error}");
                let wanted = format!(".blend({weights}): each weight is divided by their sum");
                assert!(error.to_string().contains(&wanted), "{error}");
            }
        }
    }
}

fn a1111(text: &str) -> Prompt {
    Prompt::parse(text, PromptSyntax::A1111).unwrap()
}

/// The spans of the first part at a step, `None` for `BREAK`; weights to nine digits.
fn spans(prompt: &Prompt, step: usize, steps: usize) -> Vec<Option<(String, f64)>> {
    let resolved = prompt.at(step, steps);
    let ResolvedContent::Text(spans) = &resolved.parts[0].content else {
        panic!("a blend");
    };
    let span = |span: &WeightedSpan| match span {
        WeightedSpan::Text { text, weight } => Some((text.clone(), (weight * 1e9).round() / 1e9)),
        WeightedSpan::Break => None,
    };
    spans.iter().map(span).collect()
}

#[test]
fn a1111_brackets_weigh() {
    let down = (1e9_f64 / 1.1).round() / 1e9;
    for (text, wanted) in [
        ("a cat", &[("a cat", 1.0)][..]),
        ("a (word)", &[("a ", 1.0), ("word", 1.1)]),
        ("a ((word)) b", &[("a ", 1.0), ("word", 1.21), (" b", 1.0)]),
        ("a [word]", &[("a ", 1.0), ("word", down)]),
        ("a (word:1.5)", &[("a ", 1.0), ("word", 1.5)]),
        ("a (word:0.25)", &[("a ", 1.0), ("word", 0.25)]),
        (r"a \(word\)", &[("a (word)", 1.0)]),
        (
            "((a) b:1.5)",
            &[("a", (1.1 * 1.5e9_f64).round() / 1e9), (" b", 1.5)],
        ),
        ("([x])", &[("x", 1.0)]),
        ("(open", &[("open", 1.1)]),
        ("close)", &[("close)", 1.0)]),
        ("a (colon: here)", &[("a ", 1.0), ("colon: here", 1.1)]),
        (
            "caf\u{e9} (\u{732b}:1.2)",
            &[("caf\u{e9} ", 1.0), ("\u{732b}", 1.2)],
        ),
        (
            "a+ b-- (c)1.3",
            &[("a+ b-- ", 1.0), ("c", 1.1), ("1.3", 1.0)],
        ),
    ] {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(text, weight)| Some(((*text).to_string(), *weight)))
            .collect();
        assert_eq!(spans(&a1111(text), 0, 20), wanted, "{text}");
    }
    let pieces = spans(&a1111("a BREAK b"), 0, 20);
    assert_eq!(pieces[0], Some(("a".into(), 1.0)));
    assert_eq!(pieces[1], None);
    assert_eq!(pieces[2], Some(("b".into(), 1.0)));
}

/// Texts by step: the first step counts 1 in the web UI, 0 here.
fn texts(text: &str, steps: usize) -> Vec<String> {
    let prompt = a1111(text);
    assert!(prompt.changes_by_step(), "{text}");
    (0..steps)
        .map(|step| {
            let pieces = spans(&prompt, step, steps).into_iter().flatten();
            pieces.map(|(text, _)| text).collect::<String>()
        })
        .collect()
}

#[test]
fn a1111_edits_by_step() {
    let made = texts("a [fantasy:cyberpunk:16] landscape", 20);
    assert!(made[..16].iter().all(|text| text == "a fantasy landscape"));
    assert!(
        made[16..]
            .iter()
            .all(|text| text == "a cyberpunk landscape")
    );
    // the wiki's example of 100 steps
    let made = texts(
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]\
         [ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]",
        100,
    );
    let start = "fantasy landscape with a ";
    for (steps, wanted) in [
        (0..25, "mountain and an oak in foreground shoddy"),
        (25..50, "lake and an oak in foreground in background shoddy"),
        (
            50..60,
            "lake and an oak in foreground in background masterful",
        ),
        (60..75, "lake and an oak in background masterful"),
        (75..100, "lake and a christmas tree in background masterful"),
    ] {
        for step in steps {
            assert_eq!(made[step], format!("{start}{wanted}"), "step {step}");
        }
    }
    let made = texts("[cow|horse|\u{1f408}] in a field", 5);
    let first: Vec<&str> = made
        .iter()
        .map(|text| text.split_once(' ').unwrap().0)
        .collect();
    assert_eq!(first, ["cow", "horse", "\u{1f408}", "cow", "horse"]);
}

#[test]
fn a1111_composes_and_names_loras() {
    let prompt = a1111("a cat :1.2 AND a dog AND a penguin :2.2");
    let resolved = prompt.at(0, 20);
    assert_eq!(resolved.join, Join::Compose);
    let weights: Vec<f64> = resolved.parts.iter().map(|part| part.weight).collect();
    assert_eq!(weights, [1.2, 1.0, 2.2]);
    assert_eq!(spans(&prompt, 0, 20), [Some(("a cat".into(), 1.0))]);
    let prompt = a1111("a cat <lora:fur:0.8><lora:plain> on a mat");
    let loras: Vec<_> = (prompt.loras().iter())
        .map(|lora| (lora.name.as_str(), lora.weight))
        .collect();
    assert_eq!(loras, [("fur", 0.8), ("plain", 1.0)]);
    // One weight for the text encoders and one for the UNet, by place or by name.
    for (written, weight, text) in [
        ("<lora:x:0.5:0.8>", 0.8, Some(0.5)),
        ("<lora:x:0.5:0.5>", 0.5, None),
        ("<lora:x:unet=0.8>", 0.8, Some(1.0)),
        ("<lora:x:te=0.5>", 0.5, None),
        ("<lora:x:te=0.5:unet=-1>", -1.0, Some(0.5)),
        ("<lora:x:0.7:lbw=ALL>", 0.7, None),
        (
            "<lora:x:1:0.5:lbw=1,0,-0.5,0,0,0.25,1,1,1,0,0,0>",
            0.5,
            Some(1.0),
        ),
    ] {
        let prompt = a1111(written);
        let [lora] = prompt.loras() else {
            panic!("{written}");
        };
        assert_eq!((lora.weight, lora.text_weight), (weight, text), "{written}");
        assert_eq!(
            lora.block_weights.len(),
            12 * usize::from(written.contains("lbw="))
        );
        let again = a1111(&prompt.print(PromptSyntax::A1111));
        assert_eq!(again.loras(), prompt.loras(), "{written}");
    }
    for refused in [
        "<lora:x:heavy>",
        "<lora:x:inf>",
        "<lora:x:1:2:3>",
        "<lora:x:dyn=4>",
        "<lora:x:1:lbw=NOSUCH>",
        "<lora:x:1:lbw=1,R,1>",
    ] {
        assert!(
            Prompt::parse(refused, PromptSyntax::A1111).is_err(),
            "{refused}"
        );
    }
    assert_eq!(
        spans(&prompt, 0, 20),
        [Some(("a cat  on a mat".into(), 1.0))]
    );
}
