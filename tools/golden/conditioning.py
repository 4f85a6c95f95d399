"""What Compel makes of prompts: `conditioning/`, and whole runs with it.

`conditioning/cases.json` is `{"versions", "cases": [{"prompt", "inversion"?, "resolved", "truncated",
"whole", "pooled"}]}`. `resolved` is Compel's own reading of the prompt in the words of the crate's
`prompt::Resolved`; `truncated` and `whole` (`truncate_long_prompts` true and false) name tensors of
`conditioning/states.safetensors`, `[tokens, 8 + 16]`, and `pooled` one of `[12]`; equal tensors are
stored once. The encoders are those of `base/`, but for cases with `inversion`: there the tokens of
`INVERSION` were added to both tokenizers, and rows `token_embedding.1` and `.2` to the encoders.

Every value comes from one Compel for each encoder, joined as `CompelForSDXL` joins them: the two-encoder
form of `Compel` fails for blends, for padding and for weighted conjunctions. Where it works the
values are checked to be the same.

`conditioning/runs.json` and `conditioning/NAME.safetensors` are like `runs/`, with the prompts
encoded by `CompelForSDXL`.
"""

import hashlib
import json
import warnings
from importlib.metadata import version

import numpy as np
import torch
from compel import Compel, CompelForSDXL, DiffusersTextualInversionManager, ReturnedEmbeddingsType
from compel.prompt_parser import Blend, CrossAttentionControlSubstitute
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import runs
from checkpoints import load
from files import GOLDEN, versions, write_tensors, write_text
from tokens import LONG

FOLDER = GOLDEN / "conditioning"

# three vectors, one vector, and a token whose name is a word
INVERSION = ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "<style>", "sks"]

SENTENCES = (
    "A lighthouse stands on a cliff above the sea at dusk. The waves break over wet rocks and throw their foam "
    "high into the air, and a flock of seagulls turns in the wind. Far out a small boat with a red sail heads for "
    "the harbour; its crew, three old men, look up at the light. Clouds of many colours, golden and violet and "
    "grey, move slowly over the water. Nobody speaks. The painting is in oil on a large canvas, with thick strokes."
)
NO_STOPS = " ".join(f"tree{i} grass" for i in range(20))

PROMPTS = [
    # nothing, and plain
    "",
    "   ",
    "a photo of an astronaut riding a horse on mars",
    "caf\u00e9 \u732b \U0001f408 na\u00efve",
    # more
    "a ball+ on a table",
    "a ball++++ on a table",
    "a (red ball)1.3 on a (wooden table)1.1",
    "((very deep)1.2 nesting)1.5 here",
    "a (big (red+)1.2 ball)0.8 in (the (dark)0.5)1.4 forest",
    "(a whole prompt that weighs more)1.7",
    "(nothing else)2",
    "word+, word++, word+++",
    "a cat+ a cat a cat++ a dog",
    # less: masked
    "a ball- on a table",
    "a ball-- on a (table)0.3",
    "a (red ball)0.5 on a table",
    "(a red)0.5 ball",
    "a red (ball)0.5",
    "(everything is less)0.5",
    "a (ghost)0 in a house",
    "(a)0.9 (b)0.8 (c)0.7 (d)0.6 (e)0.5",
    "a cat- and a cat-- and a (cat)0.4",
    "a bird- on+ a wire, (blurry)0.2, sharp+++",
    "rain- rain-",
    "rain- and rain-",
    # escapes and odd characters
    "a \\(literal bracket\\)+ here",
    "C++ and C++11, close-up+, -foo-",
    "unbalanced (bracket and) another)+",
    '"a quoted phrase"1.4 and more',
    "a (x:1.2) in the style of A1111",
    "\U0001f408+ \u732b-- mixed (\u00e9t\u00e9)1.2",
    # the second encoder's own padding token
    "wow! what a (view!)1.3",
    "wow!- what! (a view!!)0.6",
    "!!! " * 10 + "cat",
    "loud" + "!" * 90,
    "(loud)1.3" + " !" * 60 + " and (quiet)0.4 ! end",
    # blends
    '("a cat", "a dog").blend(0.7, 0.3)',
    '("a cat", "a dog").blend(1, 1)',
    '("a cat", "a dog").blend(1.5, -0.5, no_normalize)',
    '("a (red)1.4 cat", "a dog- in (snow)0.3", "a bird").blend(1, 2, 3)',
    '("a cat", "' + SENTENCES + '").blend(0.5, 0.5)',
    '("quiet", "loud' + " !" * 90 + '").blend(0.4, 0.8, no_normalize)',
    # conjunctions
    '("a cat", "a dog").and()',
    '("a cat", "a dog++ (barking)0.5").and(1, 0.5)',
    '("one", "two", "three").and(0.3, 1, 2)',
    '("' + SENTENCES + '", "a cat").and(0.7, 1.2)',
    # swaps say nothing here
    "a cat.swap(dog) on a (red)1.2 mat",
    'a "black cat".swap("white (dog)1.3", s_end=0.5) in (snow)0.6',
    # long
    LONG,
    SENTENCES,
    NO_STOPS,
    "a, b; c: " + "d " * 80,
    "mr. " + "word " * 90,
    "cat " * 75,
    "cat " * 76,
    "(cat)1.2 " + "dog " * 74 + "(bird)1.3 (fish)0.5",
    "x" * 400,
    LONG + ", (oil painting)1.3, " + SENTENCES + " (blurry)0.5",
    "(" + LONG.replace(",", " ") + ")1.2 and (" + NO_STOPS + ")0.6",
    "(" + SENTENCES.replace(".", ",") + ")0.7 and more",
    "a cat. " + "word " * 74 + "(late)0.5 (later)0.4 end",
    "one " * 73 + "(cut in two here)0.5 and gone",
    "one " * 74 + "(cut away)0.5",
    "(" + "red dog. " * 26 + ")0.5 " + "cat " * 20 + "fish+",
    "first- " + "dog ! " * 45 + "(last)0.8",
]

INVERSION_PROMPTS = [
    "a photo of <cat-toy>",
    "a <cat-toy>+ in the style of <style>",
    "a (<cat-toy>)0.6 on a (table)1.2, sks",
    "<style> <style> <cat-toy> dog-",
    '("a <cat-toy>", "a dog in <style>").blend(0.5, 0.5)',
    "word " * 72 + "<cat-toy> and <cat-toy>+ (<style>)0.5",
]

RUNS = [
    {
        "name": "weights",
        "request": {
            "prompt": "a (red ball)1.4 on a table-, (blurry)0.4, sharp++",
            "negative_prompt": "ugly+, (low quality)1.3, (text)0.7",
            "seed": 3,
            "steps": 4,
        },
    },
    {
        "name": "long",
        "request": {"prompt": SENTENCES + " (oil)1.3, (fog)0.5", "negative_prompt": "rain", "seed": 4, "steps": 4},
    },
    {
        "name": "blend",
        "request": {"prompt": '("a cat", "a dog+ in snow").blend(0.7, 0.3)', "seed": 5, "steps": 4},
    },
    {
        "name": "long_negatives",
        "request": {
            "prompt": ["a cat-", "a dog"],
            # Of one length: Compel pads all prompts of a call alike, the crate each with its own negative.
            "negative_prompt": ["(blurry)1.2 " + NO_STOPS + NO_STOPS, "loud" + "!" * 75],
            "seed": [6, 7],
            "steps": 3,
        },
    },
]


class Encoders:
    """The two encoders of the tiny base checkpoint and the Compels on them."""

    def __init__(self, inversion: list[str] = ()):
        self.tokenizers = [CLIPTokenizer.from_pretrained(GOLDEN / "base" / name) for name in ("tokenizer", "tokenizer_2")]
        self.models = [
            load(CLIPTextModel, GOLDEN / "base/text_encoder"),
            load(CLIPTextModelWithProjection, GOLDEN / "base/text_encoder_2"),
        ]
        self.rows = {}
        manager = None
        if inversion:
            generator = np.random.default_rng(77)
            for number, (tokenizer, model) in enumerate(zip(self.tokenizers, self.models), start=1):
                assert tokenizer.add_tokens(list(inversion)) == len(inversion)
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
                table = model.get_input_embeddings().weight
                rows = generator.standard_normal((len(inversion), table.shape[1])).astype(np.float16)
                table.data[-len(inversion) :] = torch.from_numpy(rows.astype(np.float32)) * 0.5
                self.rows[f"token_embedding.{number}"] = rows.astype(np.float32) * np.float32(0.5)
            pipe = runs.load_pipeline(None)
            pipe.tokenizer = self.tokenizers[0]
            manager = DiffusersTextualInversionManager(pipe)
        self.set_compels(manager)

    def set_compels(self, manager) -> None:
        def compel(truncate: bool, **two):
            return Compel(
                returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
                truncate_long_prompts=truncate,
                textual_inversion_manager=manager,
                **two,
            )

        self.single = {
            truncate: [compel(truncate, tokenizer=t, text_encoder=m) for t, m in zip(self.tokenizers, self.models)]
            for truncate in (True, False)
        }
        self.both = {
            truncate: compel(
                truncate, tokenizer=self.tokenizers, text_encoder=self.models, requires_pooled=[False, True]
            )
            for truncate in (True, False)
        }

    @torch.no_grad()
    def states(self, prompt: str, truncate: bool) -> torch.Tensor:
        compels = self.single[truncate]
        states = [compel(prompt) for compel in compels]
        tokens = max(state.shape[1] for state in states)
        for i, compel in enumerate(compels):
            while states[i].shape[1] < tokens:
                states[i] = torch.cat([states[i], compel.conditioning_provider.empty_z], dim=1)
        joined = torch.cat(states, dim=-1)
        try:
            other, pooled = self.both[truncate](prompt)
        except (RuntimeError, TypeError, AttributeError):
            return joined[0]
        assert torch.equal(other, joined), prompt
        assert torch.equal(pooled, self.pooled(prompt)[None]), prompt
        return joined[0]

    @torch.no_grad()
    def pooled(self, prompt: str) -> torch.Tensor:
        return self.single[True][1].conditioning_provider.get_pooled_embeddings([prompt])[0]


def spans(flattened) -> list:
    found = []
    for child in flattened.children:
        if isinstance(child, CrossAttentionControlSubstitute):
            found += [{"text": {"text": one.text, "weight": one.weight}} for one in child.original]
        else:
            found.append({"text": {"text": child.text, "weight": child.weight}})
    return found


def resolved(prompt: str) -> dict:
    """Compel's reading of a prompt, as `prompt::Resolved` is written in JSON."""
    conjunction = Compel.parse_prompt_string(prompt)
    parts = []
    for part, weight in zip(conjunction.prompts, conjunction.weights):
        if isinstance(part, Blend):
            members = [[spans(one), weight] for one, weight in zip(part.prompts, part.weights)]
            content = {"blend": {"members": members, "normalize": part.normalize_weights}}
        else:
            content = {"text": spans(part)}
        parts.append({"content": content, "weight": weight})
    return {"parts": parts, "join": "concat"}


def make_states() -> None:
    tensors, names = {}, {}

    def keep(tensor: torch.Tensor) -> str:
        array = tensor.numpy()
        assert array.dtype == np.float32 and np.isfinite(array).all()
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        if digest not in names:
            names[digest] = f"{len(names):03}"
            tensors[names[digest]] = array
        return names[digest]

    lines = []
    for inversion, prompts in ((False, PROMPTS), (True, INVERSION_PROMPTS)):
        encoders = Encoders(INVERSION if inversion else ())
        for prompt in prompts:
            entry = {"prompt": prompt}
            if inversion:
                entry["inversion"] = True
            entry["resolved"] = resolved(prompt)
            entry["truncated"] = keep(encoders.states(prompt, True))
            entry["whole"] = keep(encoders.states(prompt, False))
            entry["pooled"] = keep(encoders.pooled(prompt))
            lines.append(json.dumps(entry))
        tensors |= encoders.rows
    write_tensors(FOLDER / "states.safetensors", tensors)
    head = json.dumps({"versions": f"{versions()}, compel {version('compel')}", "inversion": INVERSION})[:-1]
    write_text(FOLDER / "cases.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")


def encoded(encode, made):
    """The pipeline's `encode_prompt` with what Compel made in the place of texts."""
    given = {
        "prompt_embeds": made.embeds,
        "pooled_prompt_embeds": made.pooled_embeds,
        "negative_prompt_embeds": made.negative_embeds,
        "negative_pooled_prompt_embeds": made.negative_pooled_embeds,
    }
    texts = dict.fromkeys(("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"))
    return lambda *_args, **kwargs: encode(**(kwargs | texts | given))


def make_runs() -> None:
    pipe = runs.load_pipeline(None)
    compel = CompelForSDXL(pipe)
    encode = pipe.encode_prompt
    lines = []
    for case in RUNS:
        request = case["request"]
        made = compel(request["prompt"], negative_prompt=request.get("negative_prompt"))
        pipe.encode_prompt = encoded(encode, made)
        tensors = runs.run(pipe, case)
        write_tensors(FOLDER / f"{case['name']}.safetensors", tensors)
        lines.append(json.dumps(case))
    pipe.encode_prompt = encode
    head = json.dumps({"versions": f"{versions()}, compel {version('compel')}"})[:-1]
    write_text(FOLDER / "runs.json", f'{head}, "runs": [\n' + ",\n".join(lines) + "\n]}\n")


def make_conditioning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_states()
        make_runs()
