"""What TFDS gives, from folders as it prepares them, is read as other sources are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dyntok_jax.tasks import uner, xnli
from dyntok_jax.tasks.source import TaskSource, records
from dyntok_jax.tasks.uner import Sentence
from dyntok_jax.tasks.xnli import Pair
from dyntok_jax.types import DyntokError

tfds: Any = pytest.importorskip("tensorflow_datasets")

LABELS = ["contradiction", "entailment", "neutral"]
TAGS = uner.LABELS[::-1]


def prepared(folder: Path, features: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The folder of a dataset of these records."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            made = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=made)

        def _split_generators(self, dl_manager):
            return {"train": iter(enumerate(rows))}

        def _generate_examples(self):
            raise AssertionError

    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def pairs(folder: Path, premise: str | bytes = "Ja") -> str:
    """One pair, in the features that TFDS's own xnli has."""
    languages = ["de", "en"]
    features = {
        "premise": tfds.features.Translation(languages),
        "hypothesis": tfds.features.TranslationVariableLanguages(languages),
        "label": tfds.features.ClassLabel(names=LABELS),
    }
    row = {
        "premise": {"de": premise, "en": "Yes"},
        "hypothesis": {"de": "Nein", "en": "No"},
        "label": "contradiction",
    }
    return prepared(folder, features, [row])


def sentences(folder: Path, words: list[str | bytes]) -> str:
    """One sentence, with numbers of class labels of their own order."""
    features = {
        "tokens": tfds.features.Sequence(tfds.features.Text()),
        "ner_tags": tfds.features.Sequence(tfds.features.ClassLabel(names=list(TAGS))),
        "number": np.int32,
    }
    return prepared(folder, features, [{"tokens": words, "ner_tags": ["O", "B-LOC"], "number": 3}])


def test_a_folder_of_pairs_gives_texts_of_the_language_and_names_of_labels(tmp_path):
    folder = pairs(tmp_path)
    assert xnli.read(TaskSource(tfds=folder, language="de")) == [Pair("Ja", "Nein", 2)]
    assert xnli.read(TaskSource(tfds=folder, language="en")) == [Pair("Yes", "No", 2)]
    with pytest.raises(DyntokError, match=r"record 1: premise: not in 'fr'; valid .* de, en"):
        xnli.read(TaskSource(tfds=folder, language="fr"))


def test_a_folder_of_sentences_gives_words_and_names_of_tags(tmp_path):
    source = TaskSource(tfds=sentences(tmp_path, ["in", "Zürich"]))
    assert uner.read(source) == [Sentence(["in", "Zürich"], ["O", "B-LOC"])]
    ((_, record),) = records(source)
    assert record == {"tokens": ["in", "Zürich"], "ner_tags": ["O", "B-LOC"], "number": 3}


def test_bytes_that_are_not_utf8_are_named_with_their_record(tmp_path):
    with pytest.raises(DyntokError, match=r"record 1: premise: b'J\\xe4'; valid is a text"):
        xnli.read(TaskSource(tfds=pairs(tmp_path / "pairs", b"J\xe4"), language="de"))
    with pytest.raises(DyntokError, match=r"record 1: word b'Z\\xfcrich'; valid are texts"):
        uner.read(TaskSource(tfds=sentences(tmp_path / "words", ["in", b"Z\xfcrich"])))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0, np.int64(7)], "record 1: ner_tags: label 7; valid are 0 to 6"),
        ([np.int64(-1), 0], "record 1: tag -1; valid are O,"),
        ([0, None], "record 1: tag None; valid are O,"),
        ([True, 0], "record 1: tag True; valid are O,"),
        (None, "record 1: ner_tags None; valid is a list"),
    ],
)
def test_labels_without_a_name_are_named_with_their_record(monkeypatch, value, words):
    label = tfds.features.ClassLabel(names=list(TAGS))
    found = [{"tokens": [b"in", b"Oslo"], "ner_tags": value}]
    features = {"ner_tags": tfds.features.Sequence(label)}
    monkeypatch.setattr("dyntok_jax.tasks.source._tfds", lambda source: (found, features))
    with pytest.raises(DyntokError) as error:
        uner.read(TaskSource(tfds="tiny"))
    assert words in str(error.value) and "cannot be loaded" not in str(error.value)
