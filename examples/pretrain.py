"""Pre-train on packed text of two corpora, lose a rank to kill -9, go on with 3, and prove what was trained on.

Run it with `make demo`, or `python examples/pretrain.py`. It needs no GPU and no download: one corpus is the source
code of Python's standard library, the other one the language reference that comes with it. All output goes below
`.demo/`. The functions to read are `make_loader` and `train`, which torchrun starts on each rank, as in

    torchrun --nproc-per-node=2 examples/pretrain.py CORPORA RUN

It resumes from the newest checkpoint in RUN, on any number of ranks. Without torchrun, this script writes the corpora,
trains a tokenizer, runs two jobs and checks them:

1. torchrun starts 2 ranks, which mix 70 % code with 30 % prose and save checkpoints. One of them dies by SIGKILL.
2. torchrun starts 3 ranks, which resume from the last checkpoint, and mix 45 % with 55 % from there on.

Every rank logs the tokens of each step. Each document begins with a few tokens that name it, so that the logs tell
which documents were trained on, and in which epoch of their corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sysconfig
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from laneway import Checkpoints, Mixture, SavableLoader, StatefulShardedDataset
from laneway.checkpoint import KeepLatest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from examples.demo import Job, log_path, read_lines, show_claims
    from laneway import RowContext
else:
    # Scripts import from their own directory, mypy from the root.
    from demo import Job, log_path, read_lines, show_claims

HOME = Path(__file__).resolve().parent.parent / ".demo"
CORPORA = ("code", "prose")
BEFORE, AFTER = {"code": 0.7, "prose": 0.3}, {"code": 0.45, "prose": 0.55}
LENGTH, GLOBAL_BATCH, GROUP_ROWS = 256, 24, 64
SAVE_EVERY = 20
MIN_CHARACTERS, MAX_CHARACTERS = 100, 2_000
"""Of a row of code."""
NUM_TOKENS = 1_024
"""Tokens of the tokenizer."""
DIGITS = 128
"""More tokens, for the names of documents."""


# --- The training script -----------------------------------------------------------------------------


class Name(NamedTuple):
    """Which document this is."""

    corpus: int
    epoch: int
    row: int
    part: int

    def tokens(self) -> list[int]:
        """Return the name as tokens, those after the tokenizer's."""
        digits = (self.corpus, self.epoch, *divmod(self.row, DIGITS), self.part)
        return [NUM_TOKENS + digit for digit in digits]

    @classmethod
    def of(cls, document: Sequence[int]) -> Name:
        """Return the name with which a document begins."""
        corpus, epoch, high, low, part = (token - NUM_TOKENS for token in document[:NAME_TOKENS])
        return cls(corpus, epoch, high * DIGITS + low, part)


NAME_TOKENS = 5


@dataclass(frozen=True)
class Documents:
    """Makes documents of a row: its tokens, in parts that fit into a pack."""

    tokenizer_file: str
    """The tokenizer, which is loaded where it is used: in the workers."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return Tokenizer.from_file(self.tokenizer_file)

    def __call__(self, row: dict[str, Any], context: RowContext) -> Iterator[dict[str, Any]]:
        """Yield the documents of a row."""
        for part, tokens in enumerate(self.parts(row["text"])):
            name = Name(CORPORA.index(context.source or ""), context.epoch, row["id"], part)
            yield {"input_ids": name.tokens() + tokens}

    def parts(self, text: str) -> list[list[int]]:
        """Return the tokens of a text, in parts that leave room for a name and the token that ends a document."""
        tokens, size = self.tokenizer.encode(text).ids, LENGTH - NAME_TOKENS - 1
        return [tokens[start : start + size] for start in range(0, len(tokens), size)]


def make_loader(corpora: Path, weights: Mapping[str, float], rank: int, world_size: int) -> SavableLoader:
    """Return the loader of a rank: a mixture of the corpora, tokenised and packed in the workers."""
    # Small shards and windows for small corpora; use the defaults for data of a usual size.
    sources = {
        name: StatefulShardedDataset(
            corpora / name,
            shuffle=True,
            seed=42,
            shard_rows=50,
            window_bytes="64KiB",
            rank=rank,
            world_size=world_size,
        )
        for name in CORPORA
    }
    documents = Mixture(sources, weights).flat_map(Documents(str(corpora / "tokenizer.json")), with_context=True)
    # 0 is the token that ends a document. A small group of rows comes to its first pack sooner, and needs more padding.
    packs = documents.pack(LENGTH, strategy="best_fit", separator=0, group_rows=GROUP_ROWS)
    return SavableLoader(packs.batch(GLOBAL_BATCH // world_size), num_workers=1)


class Block(nn.Module):
    """A layer of a transformer, with attention within documents."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the next states of `x`, of shape (packs, tokens, width); `mask` says which tokens see which."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        states: Tensor = x + self.mlp(self.norms[1](x))
        return states


class TinyTransformer(nn.Module):
    """Predicts the next token of each document in a pack, and sees nothing of the others."""

    def __init__(self, width: int = 48, num_layers: int = 2, num_heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(NUM_TOKENS + DIGITS, width)
        self.positions = nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(num_layers)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, NUM_TOKENS))

    def forward(self, input_ids: Tensor, position_ids: Tensor, document_ids: Tensor) -> Tensor:
        """Return logits of shape (packs, LENGTH, NUM_TOKENS)."""
        x = self.tokens(input_ids) + self.positions(position_ids)
        mask = (document_ids[:, :, None] == document_ids[:, None, :]).tril()
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(x)
        return logits


def loss_of(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross entropy in nats of the next tokens: not of padding, names, or another document's."""
    labels, document_ids = batch["input_ids"][:, 1:], batch["document_ids"]
    is_label = (document_ids[:, 1:] == document_ids[:, :-1]) & (document_ids[:, 1:] > 0) & (labels < NUM_TOKENS)
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels.masked_fill(~is_label, -100).flatten())


def train(corpora: Path, run: Path, code: float, num_steps: int) -> None:
    """Train on this rank up to a step, from the newest checkpoint if there is one, and log every step."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(TinyTransformer())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = make_loader(corpora, {"code": code, "prose": 1 - code}, rank, world_size)

    with (
        Checkpoints(run / "checkpoints", keep=[KeepLatest(2)]) as checkpoints,
        log_path(run, rank, world_size).open("w", buffering=1) as log,
    ):
        log.write(json.dumps({"pid": os.getpid()}) + "\n")
        start = checkpoints.resume(model=model, optimizer=optimizer, loader=loader)
        # The stream has no end, so the loop counts steps; all ranks take equally many.
        for step, batch in enumerate(loader, start.step + 1 if start else 1):
            loss = loss_of(model(**batch), batch)
            # Logged before gradients are reduced: once a rank saves a step, all ranks have logged it.
            log.write(json.dumps({**documents_of(batch), "loss": loss.item()}) + "\n")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # How far each rank has come depends on its text, so the progress of the loader is gathered from all.
            if checkpoints.due(step, every_steps=SAVE_EVERY):
                checkpoints.save(step, model=model, optimizer=optimizer, loader=loader)
                if rank == 0:
                    print(f"      step {step:4}  loss {loss.item():.3f}  checkpoint saved", flush=True)
            if step == num_steps:
                break
    dist.destroy_process_group()


def documents_of(batch: dict[str, Tensor]) -> dict[str, Any]:
    """Return the documents in the packs of a batch, as lists of tokens, and the number of tokens that are padding."""
    found = []
    for tokens, ids in zip(batch["input_ids"], batch["document_ids"], strict=True):
        found += [tokens[ids == index].tolist() for index in range(1, int(ids.max()) + 1)]
    return {"documents": found, "padding": int((batch["document_ids"] == 0).sum())}


# --- The corpora and the tokenizer -------------------------------------------------------------------


def prose_rows() -> list[str]:
    """Return sections of the Python language reference."""
    rows: list[str] = []
    for topic in topics.values():
        section = ""
        for paragraph in re.split(r"\n\n(?=\S)", topic):
            section += paragraph.strip("\n") + "\n\n"
            if len(section) > MAX_CHARACTERS // 4:
                rows.append(section)
                section = ""
        rows += [section] if section.strip() else []
    return rows


def code_rows(num_rows: int) -> list[str]:
    """Return functions and small classes of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    rows: list[str] = []
    for path in sorted(library.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        rows += [
            part.strip("\n") + "\n" for part in text.split("\n\n\n") if MIN_CHARACTERS < len(part) < MAX_CHARACTERS
        ]
        if len(rows) >= num_rows:
            break
    return rows[:num_rows]


def write_corpora(corpora: Path) -> dict[str, list[str]]:
    """Write both corpora as Parquet files, and a tokenizer trained on them; return the rows."""
    prose = prose_rows()
    # So many that both end their first epochs at about the same time, at 70 % and then 50 % of the rows.
    rows = {"code": code_rows(len(prose) * 3 // 2), "prose": prose}
    for name, texts in rows.items():
        (corpora / name).mkdir(parents=True)
        table = pa.table({"id": range(len(texts)), "text": texts})
        for index, start in enumerate(range(0, len(texts), 200)):
            pq.write_table(table[start : start + 200], corpora / name / f"part-{index}.parquet", row_group_size=64)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(*rows.values()), trainer)
    tokenizer.save(str(corpora / "tokenizer.json"))
    return rows


# --- The two jobs and the proof ----------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """The log of a rank."""

    documents: list[list[list[int]]]
    """Documents of each step's batch, as tokens, in order."""
    padding: list[int]
    """Tokens of each step's batch that are padding."""
    losses: list[float]
    """Loss of each step, on this rank's packs."""

    def until(self, step: int) -> Log:
        """Return the log of the first steps."""
        return Log(self.documents[:step], self.padding[:step], self.losses[:step])

    def names(self) -> list[Name]:
        """Return the names of all documents, in order."""
        return [Name.of(document) for document in chain(*self.documents)]

    def rows(self) -> list[Name]:
        """Return the names of all rows, in the order of their first document: those of part 0."""
        return [*dict.fromkeys(name._replace(part=0) for name in self.names())]


def read_logs(run: Path, world_size: int) -> list[Log]:
    """Return the logs of all ranks, in the order of ranks."""
    logs = []
    for _, *steps in read_lines(run, world_size):
        logs.append(Log(*([step[name] for step in steps] for name in ("documents", "padding", "loss"))))
    return logs


def job(corpora: Path, run: Path, world_size: int, code: float, num_steps: int) -> Job:
    """Return a job that trains on `world_size` ranks."""
    arguments = str(corpora), str(run), f"--code={code}", f"--steps={num_steps}"
    return Job(__file__, run, world_size, arguments, {"TOKENIZERS_PARALLELISM": "false"})


Epoch = dict[Name, list[int]]
"""The documents of epoch 0, as tokens."""


def first_epoch(corpora: Path, rows: Mapping[str, list[str]]) -> Epoch:
    """Return the documents of epoch 0 of both corpora, made of their texts without any loader."""
    make = Documents(str(corpora / "tokenizer.json"))
    return {
        name: [*name.tokens(), *tokens, 0]
        for index, corpus in enumerate(CORPORA)
        for row, text in enumerate(rows[corpus])
        for name, tokens in ((Name(index, 0, row, part), each) for part, each in enumerate(make.parts(text)))
    }


def rows_of_new_groups(before: list[Log], resumed: list[Log], epoch: Epoch) -> list[list[Name]]:
    """Return, for each rank that resumed, the rows of the groups that were not half delivered before.

    A half-delivered group goes to one rank, which delivers the rest of it first. Those groups go to the first ranks.
    """
    parts = Counter(name._replace(part=0) for name in epoch)
    seen = {row for log in before for row in log.rows()}
    skipped: list[int] = []
    for log in before:
        rows = log.rows()
        last_group = rows[-(len(rows) % GROUP_ROWS or GROUP_ROWS) :]
        delivered = Counter(name._replace(part=0) for name in log.names())
        is_whole = all(delivered[row] == parts[row._replace(epoch=0)] for row in last_group)
        if len(last_group) < GROUP_ROWS or not is_whole:
            skipped.append(GROUP_ROWS - len(last_group))
    skipped += [0] * (len(resumed) - len(skipped))
    return [[row for row in log.rows() if row not in seen][count:] for log, count in zip(resumed, skipped, strict=True)]


def furthest_off(rows: list[Name], weights: Mapping[str, float]) -> float:
    """Return by how many rows a lane is off its weights at most, after each group that has begun with all its rows."""
    worst = 0.0
    for num_rows in range(GROUP_ROWS, len(rows) + 1, GROUP_ROWS):
        counts = Counter(row.corpus for row in rows[:num_rows])
        worst = max(worst, *(abs(counts[i] - weights[name] * num_rows) for i, name in enumerate(CORPORA)))
    return worst


def sees_one_document(log: Log) -> bool:
    """Return whether a model computes the same for the last document of a pack, alone and behind the others."""
    torch.manual_seed(0)
    model, documents = TinyTransformer().eval(), log.documents[0][:3]
    ids = [index for index, each in enumerate(documents, 1) for _ in each][:LENGTH]
    positions = [position for each in documents for position in range(len(each))][:LENGTH]
    packed = torch.tensor([[*chain(*documents)][:LENGTH], positions, ids])[:, None]
    size = ids.count(ids[-1])
    with torch.no_grad():
        return torch.allclose(model(*packed)[0, -size:], model(*packed[..., -size:])[0], atol=1e-5)


def expected(epoch: Epoch, name: Name) -> list[int]:
    """Return the tokens of a document in any epoch: all epochs differ in the name only."""
    return [*name.tokens(), *epoch.get(name._replace(epoch=0), [])[NAME_TOKENS:]]


def prove(epoch: Epoch, killed: list[Log], resumed: list[Log], saved_step: int, num_steps: int) -> bool:
    """Check the steps that count of both jobs, print the result and return it."""
    before = [log.until(saved_step) for log in killed]
    documents = list(chain.from_iterable(step for log in (*before, *resumed) for step in log.documents))
    names = [*map(Name.of, documents)]
    counts = Counter(names)
    lost = {name for log in killed for name in log.names()[len(log.until(saved_step).names()) :]} & epoch.keys()
    num_tokens = sum(map(len, documents))
    num_padding = sum(sum(log.padding) for log in (*before, *resumed))
    padding, unpacked = num_padding / (num_tokens + num_padding), 1 - num_tokens / (LENGTH * len(documents))
    off = [furthest_off(log.rows(), BEFORE) for log in before]
    off += [furthest_off(rows, AFTER) for rows in rows_of_new_groups(before, resumed, epoch)]
    steps = [{len(log.losses) for log in logs} for logs in (before, resumed)]
    claims = {
        f"each of the {len(epoch):,} documents of epoch 0 exactly once": all(counts[name] == 1 for name in epoch),
        f"each of the {len(names) - len(epoch):,} documents of epoch 1 at most once": max(counts.values()) == 1,
        f"none cut, and all {num_tokens:,} tokens as the tokenizer made them of the text": all(
            document == expected(epoch, name) for name, document in zip(names, documents, strict=True)
        ),
        f"on each rank, within 2 rows of the weights after any group: {max(off):.2f} rows off at most": max(off) <= 2,  # noqa: PLR2004 - as it says
        f"{padding:.1%} of the tokens are padding; with a pack for each document, {unpacked:.1%}": padding
        < unpacked / 4,
        "a token sees nothing of the other documents in its pack": sees_one_document(killed[0]),
        f"{len(lost):,} documents were lost with the ranks and came again": bool(lost)
        and all(name in epoch and counts[name] for name in lost),
        f"the same number of steps on all ranks: {saved_step} on 2, {num_steps - saved_step} on 3": steps
        == [{saved_step}, {num_steps - saved_step}],
        "killed in epoch 0, which the resumed job has finished": lost < epoch.keys()
        and not epoch.keys() <= {name for log in killed for name in log.names()},
    }
    for when, logs in (("before the checkpoint", before), ("after it", resumed)):
        rows = Counter(CORPORA[row.corpus] for log in logs for row in log.rows())
        of_corpora = ", ".join(f"{rows[name]:,} of {name} ({rows[name] / rows.total():.1%})" for name in CORPORA)
        print(f"  rows  {of_corpora} on {len(logs)} ranks {when}")
    first, last = (sum(log.losses[i] for log in logs) / len(logs) for logs, i in ((killed, 0), (resumed, -1)))
    print(f"  loss  {first:.3f} -> {last:.3f} nats per token")
    return show_claims(claims)


def demonstrate() -> bool:
    """Run both jobs and print the proof; return whether it holds."""
    began = time.monotonic()
    corpora, run = HOME / "corpora", HOME / "pretrain"
    shutil.rmtree(corpora, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    rows = write_corpora(corpora)
    epoch = first_epoch(corpora, rows)
    # More than an epoch of both, so that each has begun its next one.
    num_steps = int(1.4 * sum(map(len, epoch.values())) / (GLOBAL_BATCH * LENGTH))
    print(f"corpora {len(rows['code']):,} rows of the standard library's code, {len(rows['prose']):,} of its reference")
    print(f"        {len(epoch):,} documents, {sum(map(len, epoch.values())):,} tokens of a tokenizer trained on them")
    print(f"job     DDP on gloo; global batches of {GLOBAL_BATCH} packs of {LENGTH} tokens, {num_steps} steps")
    print("loader  SavableLoader with 1 worker on each rank: shuffled, mixed, tokenised, best-fit packed")

    print(f"\n[1/2] torchrun with 2 ranks, 70 % code, a checkpoint every {SAVE_EVERY} steps, and kill -9 of rank 1")
    kill_step = num_steps // 2 // SAVE_EVERY * SAVE_EVERY + SAVE_EVERY // 2
    job(corpora, run, 2, BEFORE["code"], num_steps).kill_a_rank(kill_step)
    killed = read_logs(run, 2)
    saved = Checkpoints(run / "checkpoints").latest
    if saved is None:
        raise SystemExit("the job was killed before its first checkpoint")
    print(f"      SIGKILL of rank 1 after step {len(killed[1].losses)}; torchrun stopped the job")

    print(f"\n[2/2] torchrun with 3 ranks, 45 % code, resuming from step {saved.step}")
    job(corpora, run, 3, AFTER["code"], num_steps).finish()

    print("\nproof")
    holds = prove(epoch, killed, read_logs(run, 3), saved.step, num_steps)
    print(f"\n{'It holds' if holds else 'IT DOES NOT HOLD'} ({time.monotonic() - began:.0f} s)")
    return holds


def main() -> None:
    """Train as a rank of torchrun, or run both jobs."""
    parser = argparse.ArgumentParser(description="Pre-train on 2 ranks, lose one, go on with 3, and prove it.")
    parser.add_argument("corpora", type=Path, nargs="?", help="under torchrun: directory of the corpora")
    parser.add_argument("run", type=Path, nargs="?", help="under torchrun: directory for checkpoints and logs")
    parser.add_argument("--code", type=float, default=BEFORE["code"], help="share of the rows that are code")
    parser.add_argument("--steps", type=int, default=200, help="step after which to stop")
    arguments = parser.parse_args()
    if dist.is_torchelastic_launched():
        if arguments.run is None:
            parser.error("give CORPORA and RUN")
        train(arguments.corpora, arguments.run, arguments.code, arguments.steps)
    elif not demonstrate():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
