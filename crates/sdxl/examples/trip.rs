//! x
use sdxl::PromptSyntax::*;
use sdxl::prompt::*;
fn ws(s: &str) -> String {
    s.chars().filter(|c| !c.is_whitespace()).collect()
}
fn norm(r: &Resolved) -> Vec<(String, i64)> {
    let mut v: Vec<(String, i64)> = vec![];
    for p in &r.parts {
        let mut add = |spans: &Vec<Span>, pw: f64| {
            v.push(("SEP".into(), (pw * 1e6).round() as i64));
            for s in spans {
                match s {
                    Span::Break => v.push(("SEP".into(), 1000000)),
                    Span::Text { text, weight } => {
                        let t = ws(text);
                        if t.is_empty() {
                            continue;
                        };
                        let w = (weight * 1e6).round() as i64;
                        if let Some(l) = v.last_mut()
                            && l.1 == w
                            && l.0 != "|"
                        {
                            l.0.push_str(&t)
                        } else {
                            v.push((t, w))
                        }
                    }
                }
            }
        };
        match &p.content {
            Content::Text(s) => add(s, p.weight),
            Content::Blend { members, normalize } => {
                let sum: f64 = members.iter().map(|m| m.1).sum();
                for (s, w) in members {
                    add(
                        s,
                        if *normalize && sum != 0.0 {
                            w / sum
                        } else {
                            *w
                        },
                    )
                }
            }
        }
    }
    v.retain(|x| x.0 != "|");
    v
}
fn main() {
    let a = [
        "a",
        "b",
        "cat",
        "(",
        ")",
        "(",
        ")",
        "\"",
        ",",
        ".",
        "+",
        "-",
        "=",
        " ",
        " ",
        "\\",
        "1.5",
        "2",
        ".5",
        ".swap(",
        ".blend(",
        ".and(",
        "withLora(x)",
        ".attend(",
        "é",
        "🐈",
        "++",
        ")1.2",
        ")+",
        "(\"",
        "\")",
        " (",
        "\\(",
        "\\)",
        "\\\"",
        "0.3",
        ", ",
        "C++",
        "[",
        "]",
        "|",
        ":",
        ":1.3)",
        ":0.5]",
        "AND",
        "BREAK",
        "<lora:x:1>",
    ];
    let mut s: u64 = std::env::args().nth(1).unwrap().parse().unwrap();
    let n: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let mut rnd = move || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        s
    };
    let mut bad = [0; 6];
    let mut ok = [0; 6];
    let mut shown = [0; 6];
    for _ in 0..n {
        let len = 1 + rnd() % 12;
        let t: String = (0..len)
            .map(|_| a[(rnd() % a.len() as u64) as usize])
            .collect();
        for (i, (x, y)) in [
            (Compel, Compel),
            (A1111, A1111),
            (Plain, Plain),
            (Compel, A1111),
            (A1111, Compel),
            (Plain, Compel),
        ]
        .into_iter()
        .enumerate()
        {
            let Ok(p) = Prompt::parse(&t, x) else {
                continue;
            };
            let tr = p.translate(y);
            let q = &tr.text;
            let same = match Prompt::parse(q, y) {
                Err(e) => {
                    if shown[i] < 6 {
                        println!("ERR {e}")
                    };
                    false
                }
                Ok(r) => {
                    if x == y {
                        (0..4).all(|k| r.at(k, 4) == p.at(k, 4)) && r.loras() == p.loras()
                    } else {
                        !tr.lost.is_empty()
                            || norm(&r.at(0, usize::MAX)) == norm(&p.at(0, usize::MAX))
                    }
                }
            };
            if same {
                ok[i] += 1
            } else {
                bad[i] += 1;
                if shown[i] < 6 {
                    shown[i] += 1;
                    println!(
                        "{x:?}->{y:?} {t:?} => {q:?}\n  {:?}\n  {:?}",
                        p.at(0, 4).parts,
                        Prompt::parse(q, y).map(|r| r.at(0, 4).parts)
                    )
                }
            }
        }
    }
    println!("ok {ok:?} bad {bad:?}");
}
