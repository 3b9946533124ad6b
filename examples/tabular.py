"""Train on rows of hive-partitioned tables: filter, categories, statistics, a split, and each row evaluated once.

Run it with `python examples/tabular.py`. It needs no GPU and no download. All output goes below `.demo/`. The function
to read is `train`, which torchrun starts on each rank, as in

    torchrun --nproc-per-node=2 examples/tabular.py CORPUS RUN

It predicts whether a purchase is returned, from events of shops in several countries. Without torchrun, this script
writes the events, trains on 2 ranks to the middle of an epoch, resumes to its end on 3, and checks the row ids.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laneway import Manifest, SavableLoader, StatefulShardedDataset
from laneway.distributed import scan_once

HOME = Path(__file__).resolve().parent.parent / ".demo"
NUM_ROWS = 60_000
MIN_PRICE = 5
WANTED = (pc.field("country") != "US") & (pc.field("price") > MIN_PRICE)
UNKNOWN_BRAND = 7


# --- The training script -----------------------------------------------------------------------------


class Returned(nn.Module):
    """Predicts the logit of a return from the brand, the country and the price."""

    def __init__(self, num_brands: int, num_countries: int, mean: float, std: float) -> None:
        super().__init__()
        self.brand = nn.Embedding(num_brands + 1, 8)  # the last one is for null
        self.country = nn.Embedding(num_countries, 4)
        self.layers = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 1))
        self.mean, self.std = mean, std

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return logits, shape (rows,)."""
        price = (batch["price"].float() - self.mean) / self.std
        brand = self.brand(batch["brand"] % self.brand.num_embeddings)  # -1 is the last one
        features = [brand, self.country(batch["country"]), price[:, None]]
        return self.layers(torch.cat(features, dim=1)).squeeze(1)  # type: ignore[no-any-return]


def make_dataset(manifest: Manifest, **options: object) -> StatefulShardedDataset:
    """Return the events that we want, with brands and countries as ids."""
    return StatefulShardedDataset(
        manifest,
        columns=["id", "brand", "country", "price", "returned"],
        # Countries are decided by the names of directories, prices by the statistics of row groups where they can be.
        filter=WANTED,
        categories={"brand": None, "country": None},
        fill_null={"brand": -1},
        batch_size=200,
        **options,  # type: ignore[arg-type]
    )


def train(corpus: Path, run: Path) -> None:
    """Train an epoch on this rank, from the checkpoint if there is one; then evaluate."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # Each rank counts the rows, and collects brands and countries, of a part of the files; then all know the whole.
    manifest = scan_once(corpus, filter=WANTED, categories=["brand", "country"])
    dataset = make_dataset(manifest, shuffle=True, seed=42)
    training = dataset.split({"train": 0.9, "val": 0.1}, seed=1).train
    price = training.statistics(["price"])["price"]
    sizes = {name: len(values) for name, values in dataset.categories.items()}
    torch.manual_seed(0)
    net = Returned(sizes["brand"], sizes["country"], price.mean or 0.0, price.std or 1.0)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = SavableLoader(training, num_workers=1)
    if (run / "checkpoint.pt").exists():
        saved = torch.load(run / "checkpoint.pt", weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
    is_first_job = not (run / "checkpoint.pt").exists()

    seen = []
    for batch in loader:
        seen += batch["id"].tolist()
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch["returned"].float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if is_first_job and loader.batches_delivered == len(loader) // 2:
            if rank == 0:
                checkpoint = {
                    "model": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "loader": loader.state_dict(),
                }
                torch.save(checkpoint, run / "checkpoint.tmp")
                os.replace(run / "checkpoint.tmp", run / "checkpoint.pt")
            dist.barrier()
            break
    log = (
        {"trained": seen, "evaluated": []} if is_first_job else {"trained": seen, "evaluated": evaluate(net, manifest)}
    )
    (run / f"rank-{rank}-of-{world_size}.json").write_text(json.dumps(log))
    dist.destroy_process_group()


def evaluate(net: Returned, manifest: Manifest) -> list[int]:
    """Evaluate each row of the validation set once, over all ranks, and return the ids of this rank."""
    # Ranks may have different numbers of batches, so sums are reduced after the loop, not inside of it.
    held_out = make_dataset(manifest, remainder="keep").split({"train": 0.9, "val": 0.1}, seed=1).val
    seen, sums = [], torch.zeros(2)
    with torch.no_grad():
        for batch in SavableLoader(held_out):
            seen += batch["id"].tolist()
            is_right = (net(batch) > 0) == batch["returned"].bool()
            sums += torch.tensor([is_right.sum(), len(is_right)])
    dist.all_reduce(sums)
    if dist.get_rank() == 0:
        print(f"      {int(sums[1]):,} rows evaluated once, {sums[0] / sums[1]:.1%} right", flush=True)
    return seen


# --- The corpus --------------------------------------------------------------------------------------


def write_corpus(corpus: Path) -> pa.Table:
    """Write events to a directory for each country, and return those that the training wants."""
    generator = np.random.default_rng(0)
    countries = generator.choice(["DE", "FR", "IT", "US"], NUM_ROWS)
    brands = generator.integers(0, 40, NUM_ROWS)
    prices = generator.gamma(2.0, 20.0, NUM_ROWS).round(2)
    risk = -2 + 0.04 * prices - 1.5 * (brands % 3 == 0) + (countries == "IT")
    table = pa.table(
        {
            "id": np.arange(NUM_ROWS),
            "country": countries,
            "brand": pa.array([None if brand == UNKNOWN_BRAND else f"brand {brand}" for brand in brands.tolist()]),
            "price": prices,
            "returned": generator.uniform(size=NUM_ROWS) < 1 / (1 + np.exp(-risk)),
        }
    )
    pq.write_to_dataset(table, corpus, partition_cols=["country"], row_group_size=1000)
    return table.filter(WANTED)


# --- The two jobs and the proof ----------------------------------------------------------------------


def run_job(corpus: Path, run: Path, num_ranks: int) -> list[dict[str, list[int]]]:
    """Train on a number of ranks, and return the logs."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, __file__, str(corpus), str(run)], check=True, env=environment)
    return [json.loads((run / f"rank-{rank}-of-{num_ranks}.json").read_text()) for rank in range(num_ranks)]


def main() -> None:
    """Write the events, train, resume, and check the rows."""
    home = HOME / "tabular"
    shutil.rmtree(home, ignore_errors=True)
    (home / "run").mkdir(parents=True)
    print("1. Events of shops, in a directory for each country")
    wanted = set(write_corpus(home / "corpus")["id"].to_pylist())
    dataset = make_dataset(Manifest.scan(home / "corpus"), rank=0, world_size=1)
    print(f"      {dataset.selection!r}".replace("\n", "\n      "))
    print(f"      { ({name: len(values) for name, values in dataset.categories.items()}) } values")
    print("2. Train on 2 ranks to the middle of an epoch")
    first = run_job(home / "corpus", home / "run", 2)
    print("3. Resume on 3 ranks, and evaluate")
    second = run_job(home / "corpus", home / "run", 3)

    trained = [row for log in first + second for row in log["trained"]]
    evaluated = [row for log in second for row in log["evaluated"]]
    # With remainder="pad", a rank may repeat one row at the end of an epoch, so that all take as many batches.
    repeated = len(trained) - len(set(trained))
    is_right = (
        set(trained) | set(evaluated) == wanted
        and not set(trained) & set(evaluated)
        and len(evaluated) == len(set(evaluated))
        and repeated < len(second)
    )
    print(f"      trained on {len(set(trained)):,} rows, {repeated} of them twice to keep ranks equal")
    print(f"      {'every wanted row was trained on or evaluated, none both' if is_right else 'WRONG ROWS'}")
    sys.exit(not is_right)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("run", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.corpus:
        train(arguments.corpus, arguments.run)
    else:
        main()
