"""How Compel reads prompts: `prompts.json`.

`{"versions", "cases": [{"prompt", "resolved", "loras"?, "swaps"?} | {"prompt", "error"}]}`. `resolved` is
Compel's tree, which is flat, in the words of the crate's `prompt::Resolved`; `swaps` are the texts that
`.swap(...)` would show instead, in order; `error` is the name of the Python exception.

Brackets are at most four deep: the library takes four times as long for each more.
"""

import json
import warnings
from importlib.metadata import version

from compel import Compel
from compel.prompt_parser import Blend, CrossAttentionControlSubstitute

from files import GOLDEN, write_text

PROMPTS = [
    # nothing, and nearly nothing
    "",
    " ",
    " \t\n ",
    "\u00a0\u3000",
    "()",
    "(())",
    '""',
    '"" a',
    "( )",
    "a () b",
    '(" ")+',
    ",",
    ".",
    "+",
    "--",
    "(",
    ")",
    '"',
    "\\",
    # plain words
    "a photo of an astronaut riding a horse on mars",
    "A Photo, of AN astronaut. Riding; a: horse! on? mars...",
    "  leading and trailing  ",
    "many     spaces\tand\ttabs\nand lines\r\nand more",
    "a,b,c",
    "a,,b ,c , d,",
    "1girl,solo,1.5 metres, f/1.8",
    "e.g. this and that.",
    "50% off & more @ home #1 $5 <3 ~ ^ * _ |",
    "key=value a = b",
    "it's the artist's `own` work",
    # signs behind words
    "a ball+ on a table",
    "a ball++ on a table",
    "a ball- on a table",
    "a ball--- on a table",
    "word+, word++. word+++; word",
    "word++++++++++++++++++++",
    "word--------------------",
    "a+ b+ c+ d",
    "a+ b++ c+ d-",
    "cat+-",
    "cat-+",
    "cat++--",
    "cat+ -dog",
    "cat +",
    "cat + dog",
    "cat - dog",
    "cat -- dog",
    "cat +dog",
    "+cat",
    "--cat",
    "++cat--",
    "1+ 2- 3.5+ .5-",
    "foo+bar",
    "foo+bar+",
    "foo.+",
    "foo,+",
    "foo=+",
    "foo:+",
    "a&b+ c/d- e_f++",
    # hyphens and plus signs that belong to words
    "close-up",
    "close-up+",
    "close-up--",
    "close-",
    "a well-known, state-of-the-art, close-up photo",
    "-foo-",
    "--foo--",
    "a trailing -",
    "a trailing-",
    "a trailing --",
    "black-and-white+ photo",
    "mid-1990s, x-ray-, t-shirt+",
    "C++",
    "C++11",
    "C++ and C",
    "C+++",
    "C\\+\\+",
    "(C++)1.2",
    "(C++ code)1.2",
    "g++- c--",
    "A+ grade, B- grade",
    "2+2=4",
    "1-2-3",
    "-1.5 +2",
    # brackets and numbers
    "(several words)1.3",
    "a (red ball)1.3 on a (wooden table)0.8",
    "(red ball)+ (blue ball)-- (green ball)",
    "(a)1 (b)1.0 (c)01.00 d",
    "(x)2. y",
    "(x).5 y",
    "(x)0 y",
    "(x)0.0001 y",
    "(x)2024",
    "(x)1.5.5",
    "(x)1,000",
    "(x)1e5",
    "(x)-0.5",
    "(x)+1.5",
    "(x)-2",
    "(x) 1.5",
    "(x) +",
    "(x)1.5+",
    "(x)+1",
    "(x)++--",
    "(cat)-like",
    "(cat)3d",
    "(cat)s",
    "cat(s)",
    "cat(s)1.2",
    "foo(bar)+",
    "(foo)(bar)",
    "(foo)1.1(bar)1.2",
    "(foo)1.1,(bar)1.2.",
    "(foo)1.2)",
    "(x)\u0661.\u0665 y",
    "(a b c)1.1 d (e f)1.1 g",
    "(a)1.1 (b)1.1 c+ d",
    "(a,b 3.14)",
    "(a.b,c)0.9",
    "( spaced   out )1.2",
    "(line\nbreak)1.2",
    # nesting
    "((a))",
    "((a)1.2)1.5",
    "((very deep)1.2 nesting)1.5 here",
    "(a big (red+)1.2 ball)0.8 in (the (dark)0.5)1.4 forest",
    "(a (b (c (d)+)+)+)+",
    "(a+ b- (c+ d-)1.5)0.5",
    "(((a) b) c)1.3",
    "(()+)1.2 a",
    "((a)0.5 b)2 c",
    "((a)2)0.5 b",
    '("a (b)1.2 c" d)1.1',
    '(a "b c"1.3 d)0.7',
    # brackets without partner, and others that are text
    "(a",
    "a)",
    "a (b c",
    "a b) c",
    "a (b)1.2) c",
    "((a)1.2 b",
    "(a (b)+",
    "unbalanced (bracket and) another)+",
    ")( ",
    "a )( b",
    "foo)+",
    "foo(+",
    "(a + b)1.2",
    "(a - b)",
    "(a=b)+",
    "(a (b + c)1.2 (d)1.1)1.3",
    "(a [b] {c})1.1",
    "[a] {b} <c>",
    "a (x:1.2) in the style of another",
    "((masterpiece:1.3), best quality:1.1)",
    ":) ;-) :-( (^_^)",
    # escapes
    "a \\(literal bracket\\) here",
    "a \\(literal bracket\\)+ here",
    "\\(a",
    "a\\)",
    "(a \\(b\\) c)1.2",
    "(a \\) b)1.2",
    "foo \\(bar\\)1.3",
    "foo\\(bar\\)",
    "foo\\+",
    "foo\\-",
    "foo\\.",
    "foo\\,",
    "(foo\\+ bar\\=)1.2",
    '\\"quoted\\"',
    'say \\"hello\\"+ now',
    "back\\slash",
    "double\\\\(slash\\\\)",
    "\\\\\\(three\\\\\\)",
    "trailing \\",
    "(trailing \\)",
    "C:\\new\\table",
    # quotes
    '"a quoted phrase"',
    '"a quoted phrase"1.4 and more',
    '"a quoted phrase"++ and "another"-',
    '"a" "b"',
    '"a""b"',
    '"a"b',
    'a"b"',
    'an "unclosed quote',
    'an unclosed" quote',
    '"one" "two',
    '"a (b)1.2 c"1.5',
    '"a + b"1.2',
    '"an (unbalanced"1.2',
    '"inner \\"quotes\\" here"1.2',
    '"closed by \\"',
    '"line\nbreak"1.2',
    '"C:\\new"',
    '"a\\tb"',
    '"a, b. c"1.2',
    '("a")1.2',
    "'single'1.2",
    "\u201ctypographic\u201d+ quotes",
    'a 5" disk, 6\'2" tall',
    # unicode and emoji
    "caf\u00e9 \u732b \U0001f408 na\u00efve",
    "caf\u00e9+ \u732b++ \U0001f408--",
    "(\u5199\u771f \u732b)1.3",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467+ (\U0001f1fa\U0001f1f3)1.2",
    "e\u0301+ \u00e9",
    "\u043a\u043e\u0442+ (\u0441\u043e\u0431\u0430\u043a\u0430)0.5",
    "\u0642\u0637\u0629+ (\u0643\u0644\u0628)1.2",
    "\uff08full width\uff091.2",
    "em\u2014dash+ en\u2013dash- minus\u2212",
    "no\u00a0break+",
    "(no\u00a0break)1.2 \u3000 wide",
    "zero\u200bwidth+ \ufeffmark",
    "nul \x00 here+",
    "vertical \x0b tab",
    "form\x0cfeed",
    # blends
    '("a cat", "a dog").blend(0.7, 0.3)',
    '("a cat", "a dog").blend()',
    '("a cat", "a dog").blend(1)',
    '("a cat", "a dog").blend(1, 2, 3)',
    '("a cat", "a dog").blend(a, b)',
    '("a cat", "a dog").blend(1, -1)',
    '("a cat", "a dog").blend(1.5, -0.5, no_normalize)',
    '("a cat", "a dog").blend(no_normalize)',
    '("a (red)1.4 cat", "a dog- in (snow)0.3", "a bird").blend(1, 2, 3)',
    '("a + b", "c (d").blend(1, 2)',
    "(cat, dog).blend(1, 2)",
    "((a cat), (a dog)+).blend(1, 2)",
    "((a cat), dog).blend(1, 2)",
    "(a cat, a dog).blend(1, 2)",
    '("a cat").blend()',
    '("a cat", "").blend(1, 2)',
    '("a cat", ()).blend(1, 2)',
    '("a cat", "a dog").blend(1,2)',
    '( "a cat" , "a dog" ) .blend ( 1 , 2 )',
    '("a cat", "a dog").blend(0.7, 0.3) and more',
    'before ("a cat", "a dog").blend(0.7, 0.3)',
    '("a cat.swap(dog)", "a bird").blend(1, 1)',
    '("a cat", "a dog").blend',
    '("a cat", "a dog").blend(1, 2',
    # conjunctions
    '("a cat", "a dog").and()',
    '("a cat", "a dog++ (barking)0.5").and(1, 0.5)',
    '("one", "two", "three").and(0.3, 1, 2)',
    '("a cat", "a dog").and(1)',
    '("a cat", "a dog").and(1, x)',
    '("a cat", "a dog").add(1, 2)',
    '("a cat", "a dog").and() and the rest',
    '("a cat", "").and()',
    '("a cat", ()).and(1, 2)',
    "(cat, dog).and()",
    "(cat, dog).and(0.5, 2)",
    '("a cat").and(0.5)',
    'before ("a cat", "a dog").and()',
    '(("a", "b").blend(1, 2), "c").and()',
    '("a cat.swap(dog)", "a bird").and()',
    '("a cat", "a dog").AND()',
    # swaps
    "a cat.swap(dog) on a mat",
    'a "black cat".swap("white (dog)1.3", s_end=0.5) in (snow)0.6',
    "a (black cat).swap(white dog+) here",
    "a cat.swap() here",
    '"".swap(dog)',
    "().swap(dog)",
    "a cat.swap(dog, shape_freedom=0.5)",
    "a cat.swap(dog, s_start=0.1, t_end=0.9)",
    "cat.swap",
    "cat.swap(dog",
    "cat .swap (dog)",
    "cat+.swap(dog)",
    "(cat.swap(dog))1.3 mat",
    "(a cat.swap(big dog)+ on mat)1.3",
    # other words of the language
    "cat.attend(1.2) dog",
    "cat.attend(++) dog",
    '"black cat".attend(0.5) dog',
    "cat.attend() dog",
    "withLora(name) a cat",
    "withLora(name, 0.5) a cat",
    "useLora(name,0.5) a cat withLora(other-name_2, 2)",
    "a cat withLora(x) in a hat",
    "(a cat withLora(x, 0.3) in a hat)1.2",
    "withLora(x)",
    "withLora(not a name) a cat",
    "withLora() a cat",
    'withLora(x, 0.4) ("a", "b").blend(1, 2) useLora(y)',
    '("a withLora(x)", "b").and()',
    # long, and everything at once
    "(masterpiece)1.2, best quality+, 8k, (a lighthouse on a cliff)1.1 at dusk, waves--, seagulls, "
    "(dramatic (golden)1.3 clouds)0.9, oil-on-canvas, by an (unknown \\(old\\) master)0.5",
    "word " * 200,
    "a+ " * 100,
]


def spans(fragments) -> list:
    return [{"text": {"text": fragment.text, "weight": float(fragment.weight)}} for fragment in fragments]


def text(prompt, swaps: list) -> list:
    found = []
    for child in prompt.children:
        if isinstance(child, CrossAttentionControlSubstitute):
            found += spans(child.original)
            swaps.append(spans(child.edited))
        else:
            found += spans([child])
    return found


def read(prompt: str) -> dict:
    try:
        conjunction = Compel.parse_prompt_string(prompt)
    except Exception as error:
        return {"prompt": prompt, "error": type(error).__name__}
    parts, swaps = [], []
    for part, weight in zip(conjunction.prompts, conjunction.weights):
        if isinstance(part, Blend):
            members = [[text(one, swaps), float(weight)] for one, weight in zip(part.prompts, part.weights)]
            content = {"blend": {"members": members, "normalize": part.normalize_weights}}
        else:
            content = {"text": text(part, swaps)}
        parts.append({"content": content, "weight": float(weight)})
    case = {"prompt": prompt, "resolved": {"parts": parts, "join": "concat"}}
    if conjunction.lora_weights:
        case["loras"] = [{"name": lora.model, "weight": float(lora.weight)} for lora in conjunction.lora_weights]
    if swaps:
        case["swaps"] = swaps
    return case


def make_prompts() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS), "a prompt is there twice"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = [json.dumps(read(prompt)) for prompt in PROMPTS]
    head = json.dumps({"versions": f"compel {version('compel')}, pyparsing {version('pyparsing')}"})[:-1]
    write_text(GOLDEN / "prompts.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
