"""What both tokenizers make of many prompts: `tokens.json`."""

import json

from transformers import CLIPTokenizer

from files import GOLDEN, versions, write_text

LONG = (
    "an extremely detailed oil painting of a lighthouse on a cliff at dusk, waves breaking below, "
    "seagulls in the wind, dramatic clouds, golden rim light, thick brush strokes, by an unknown master, "
    "museum quality, varnished canvas, fine craquelure, deep shadows, warm highlights, a small boat in the "
    "distance, foam, spray, wet rocks, moss, a winding path with a wooden fence, trending, 8k, best quality"
)

PROMPTS = [
    "a photo of an astronaut riding a horse on mars",
    "A Photo Of An ASTRONAUT",
    "Astronaut in a jungle, cold color palette, muted colors, detailed, 8k",
    # nothing, and nearly nothing
    "",
    " ",
    "   \t\n  ",
    "\u00a0\u2003\u3000",
    "a",
    ".",
    # spaces
    "  leading and trailing  ",
    "many     spaces\tand\ttabs",
    "line one\nline two\r\nline three\n\n\nline six",
    "no\u00a0break\u2009thin\u3000wide\u2028line\u2029paragraph\u0085next",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "soft\u00adhyphen",
    # the padding token of the second encoder
    "!",
    "!!",
    "!!!",
    "wow!",
    "wow! what",
    "a!b",
    "a ! b",
    "!a",
    "?!?!",
    "...!",
    "hello!!! world!!",
    "\uff01 full-width",
    "\u00a1hola!",
    # special tokens typed by the user, in several spellings
    "<|endoftext|>",
    "<|startoftext|>",
    "a cat<|endoftext|>a dog",
    "a cat <|endoftext|> a dog",
    "<|startoftext|>a cat<|endoftext|>",
    "<|ENDOFTEXT|>",
    "<|StartOfText|> cat",
    "< |endoftext| >",
    "<|endoftext|",
    "<|endoftext|><|endoftext|>!",
    "<|end\u00adoftext|>",
    # contractions and quotes
    "I'm you're he's she'll they've I'd don't",
    "I'M YOU'RE HE'S SHE'LL",
    "it\u2019s a \u201cquoted\u201d word \u2018here\u2019",
    "rock 'n' roll '70s dogs' 's 't 're",
    "''''s ''d",
    "o'clock l'amour d'or qu'est-ce",
    # punctuation
    "...",
    "a, b; c: d. e? f",
    "(((masterpiece))), [blurry], {a|b}, <lora:x:0.8>",
    "(cat:1.3) AND (dog:0.7)",
    "----====____****",
    "#hashtag @user $5 50% a&b a*b a+b=c ~/path\\to\\file",
    "https://example.org/a?b=c&d=e#f",
    "snake_case camelCase kebab-case dotted.name",
    "\"double\" `back` ^caret^ |pipe|",
    "\u2014 em dash \u2013 en dash \u2026 ellipsis \u2022 bullet",
    "\u00ab guillemets \u00bb \u3010 brackets \u3011 \u3001 \u3002",
    # numbers
    "0 1 12 123 1234567890",
    "3.14159 1,000,000 -40 1e-5 0x1F 16:9 1920x1080",
    "no. 1 2nd 3rd 4k 8K 35mm f/1.8",
    "\u00bd \u00b2 \u2460 \u2167 \u0664\u0665 \uff11\uff12\uff13 \u0967\u0968",
    # html entities and mark-up: nothing is unescaped
    "tom &amp; jerry &lt;b&gt; &#39;x&#39; &quot;q&quot; &nbsp;",
    "<b>bold</b> <br/>",
    # accents: composed, decomposed, and letters that lower-case oddly
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe STRASSE",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "\u00c9COLE \u00dcBER \u00d1AND\u00da \u00d8RE \u00deORN",
    "\u0130stanbul I\u0307 \u0131 \u01c5 \u1e9e \u212b \u2126",
    "\u039f\u0394\u039f\u03a3 \u03a3 \u03a3\u0391\u03a3 \u03c2",
    "\ufb01ne \ufb02ow o\ufb03ce \u0149 \u01f0",
    "z\u0335\u0321a\u0337lg\u0338o\u0336",
    # full-width and other compatibility forms stay as they are
    "\uff26\uff55\uff4c\uff4c \uff37\uff49\uff44\uff54\uff48",
    "\U0001d4d0 \U0001d51e \u24b6 \u2122 \u2120 \u00ae \u00a9",
    "\uff76\uff9e \u30ab\u3099 \u30ac",
    # scripts
    "\u732b\u304c\u5bff\u53f8\u3092\u98df\u3079\u308b",
    "\u4e00\u5ea7\u5c71 \u9f99 \u98a8\u666f",
    "\ud55c\uad6d\uc5b4 \uace0\uc591\uc774",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u043a\u043e\u0448\u043a\u0430 \u041f\u0420\u0418\u0412\u0415\u0422",
    "\u0642\u0637\u0629 \u062c\u0645\u064a\u0644\u0629",
    "\u05d7\u05ea\u05d5\u05dc \u05d9\u05e4\u05d4",
    "\u092c\u093f\u0932\u094d\u0932\u0940 \u0915\u094d\u0937",
    "\u0e41\u0e21\u0e27\u0e19\u0e48\u0e32\u0e23\u0e31\u0e01",
    "\U00020000\U0002a6d6 \U00010348",
    "mixed \u732bcat\u732b 12\u732b34",
    # emoji
    "\U0001f600",
    "a cat \U0001f408 and a dog \U0001f415!",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family",
    "\U0001f44d\U0001f3fd thumbs \u2764\ufe0f heart \u2764",
    "\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea 1\ufe0f\u20e3",
    # control characters, private use, unassigned, replacement
    "a\u0000b",
    "bell\u0007 escape\u001b[31m backspace\b delete\u007f",
    "vertical\u000btab form\u000cfeed file\u001cseparator unit\u001f",
    "\ue000 \U000f0000 \u0378 \ufffd \uffff",
    "\u202eright to left\u202c",
    # joins of classes
    "abc123def 4cats cat4 _x_ x_1",
    "word,word.word;word",
    "a-b--c---d",
    "\u2014\u00e9\u2014 \u00e91\u00e9 \u0661\u0627",
    # odd words
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "qzxjk vvvwwwxxx hjkl;",
    "BREAK greg rutkowski artstation unreal engine octane render",
    # long ones: at, just under and over the 75 that fit
    LONG,
    " ".join(["cat"] * 74),
    " ".join(["cat"] * 75),
    " ".join(["cat"] * 76),
    " ".join(["cat"] * 200),
    "!" * 80,
    " ".join(["dog !"] * 40),
    "\U0001f408" * 40,
    "a " * 75 + "\u732b",
    LONG + "<|endoftext|>" + LONG,
]


def make_tokens() -> None:
    """One line a prompt: ids padded and truncated to 77, and the whole ids.

    `removed` is the text the pipeline's warning shows when a prompt is cut,
    null when nothing was.
    """
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(GOLDEN / "base" / name) for name in ("tokenizer", "tokenizer_2")
    }
    lines = []
    for prompt in PROMPTS:
        entry = {"prompt": prompt}
        for name, tokenizer in tokenizers.items():
            limit = tokenizer.model_max_length
            ids = tokenizer(prompt, padding="max_length", max_length=limit, truncation=True).input_ids
            whole = tokenizer(prompt, padding="longest").input_ids
            removed = tokenizer.batch_decode([whole[limit - 1 : -1]])[0] if len(whole) > limit else None
            entry[name] = {"ids": ids, "whole": whole, "removed": removed}
        lines.append(json.dumps(entry, separators=(",", ":")))
    head = json.dumps({"versions": versions()})[:-1]
    write_text(GOLDEN / "tokens.json", f'{head}, "prompts": [\n' + ",\n".join(lines) + "\n]}\n")
