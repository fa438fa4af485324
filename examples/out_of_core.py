"""Learn from a stream of files that need not fit into memory: hashed text, one file at a time.

Run it from the root of the repository: python examples/out_of_core.py

Sentences of BBC articles are written to files of a few hundred lines each. The stream reads a file,
hashes its words into a million features, trains on it with `partial_fit`, and forgets it. Memory
does not grow with the number of files, and a step costs what the words of its sentence cost,
however many features there are.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from datasets import load_bbc
from report import print_table
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.model_selection import train_test_split

from skoptim import SGDClassifier

N_FEATURES = 2**20
SENTENCES_PER_FILE = 500


def write_files(folder: Path, texts: Sequence[str], labels: Sequence[str], copies: int) -> int:
    """Write the sentences of all texts to files of JSON lines, shuffled; return how many files."""
    sentences = [
        (label, sentence)
        for text, label in zip(texts, labels, strict=True)
        for sentence in re.split(r"(?<=[.!?])\s+", text)
        if len(sentence) > 20
    ]
    rng = np.random.default_rng(0)
    n_files = 0
    for _ in range(copies):
        order = rng.permutation(len(sentences))
        for first in range(0, len(order), SENTENCES_PER_FILE):
            part = [sentences[i] for i in order[first : first + SENTENCES_PER_FILE]]
            file = folder / f"part-{n_files:04d}.jsonl"
            file.write_text("\n".join(json.dumps(line) for line in part), encoding="utf-8")
            n_files += 1
    return n_files


def stream(folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the labels and the sentences of one file after the other."""
    for file in sorted(folder.glob("part-*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        yield [label for label, _ in lines], [sentence for _, sentence in lines]


def resident_megabytes() -> float:
    """Return the memory that this process holds now; NaN where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float("nan")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> SGDClassifier:
    """Train on the stream; print a table of its progress; return the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a tenth of the articles, one copy")
    small = parser.parse_args(arguments).small
    texts, labels = load_bbc()
    if small:
        texts, labels = texts[::10], labels[::10]
    texts, held_texts, labels, held_labels = train_test_split(
        texts, labels, test_size=0.2, stratify=labels, random_state=0
    )
    # Hashing needs no vocabulary, so that the first file can be read like the last.
    vectorizer = HashingVectorizer(n_features=N_FEATURES, ngram_range=(1, 2), dtype=np.float32)
    X_held = vectorizer.transform(held_texts)
    model = SGDClassifier("multinomial", penalty="l1", alpha=1e-6, random_state=0)
    rows, sentences, stored, training = [], 0, 0, 0.0
    with TemporaryDirectory() as name:
        folder = Path(name)
        n_files = write_files(folder, texts, labels, copies=1 if small else 4)
        checkpoints = {round(n_files * part / 8) for part in range(1, 9)}
        for n_read, (y, lines) in enumerate(stream(folder), start=1):
            X = vectorizer.transform(lines)
            start = time.perf_counter()
            model.partial_fit(X, y, classes=np.unique(labels))
            training += time.perf_counter() - start
            sentences, stored = sentences + len(lines), stored + X.nnz
            if n_read in checkpoints:
                rows.append(
                    (
                        n_read,
                        f"{sentences:,}",
                        f"{1e9 * training / stored:.0f}",
                        f"{model.score(X_held, held_labels):.4f}",
                        f"{np.count_nonzero(model.coef_):,}",
                        f"{resident_megabytes():.0f}",
                    )
                )
    titles = ("files", "sentences", "ns per word", "accuracy", "non-zero weights", "memory in MB")
    print_table(titles, rows)
    return model


if __name__ == "__main__":
    main()
