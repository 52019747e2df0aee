"""The bundled quartets: what they ask cannot be told from their words, only from how the words combine."""

from __future__ import annotations

import re
from collections import Counter
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from refusal_core.analysis.effect_sizes import auroc, cohens_d
from refusal_core.models.fetching import fetch
from refusal_core.prompts.sets import load_contrast_set, load_transfer_set

CELLS = {(label, cue) for label in ("harmful", "harmless") for cue in ("alarming", "calm")}

PENALTIES = [0.001, 0.1, 10.0]
CHANCE = pytest.approx(0.5, abs=0.05)

TEXT_MODELS = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    "characters": {"analyzer": "char", "ngram_range": (3, 5)},
}


@pytest.fixture(scope="module")
def quartets() -> pd.DataFrame:
    with resources.files("refusal_core.prompts").joinpath("data", "quartets.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['-]\w+)*|[^\w\s]", text.lower())


def shared_length(sentences: list[list[str]]) -> int:
    """Return how many words all sentences begin with."""
    columns = zip(*sentences, strict=False)
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, sentences)))


def text_model(name: str) -> Pipeline:
    return make_pipeline(TfidfVectorizer(sublinear_tf=True, **TEXT_MODELS[name]), LogisticRegression(max_iter=2000))


def nested_auroc(model: Pipeline, features: np.ndarray, table: pd.DataFrame) -> float:
    """Return the AUROC of intent on held-out quartets, the penalty chosen inside the training quartets only.

    Args:
        model: pipeline that ends in a logistic regression.
        features: ``(prompt,)`` texts or ``(prompt, feature)``.
        table: with ``label`` and ``quartet_id``.
    """
    harmful, quartet = table["label"].eq("harmful").to_numpy(), table["quartet_id"].to_numpy()
    score = np.empty(len(table))
    for training, held_out in GroupKFold(5, shuffle=True, random_state=0).split(features, harmful, quartet):
        inner = GroupKFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(model, {"logisticregression__C": PENALTIES}, scoring="roc_auc", cv=inner)
        search.fit(features[training], harmful[training], groups=quartet[training])
        score[held_out] = search.decision_function(features[held_out])
    return auroc(score[harmful], score[~harmful])


def transfer_auroc(model: Pipeline, features: np.ndarray, quartets: pd.DataFrame) -> float:
    """Return the AUROC of intent by a model that is fitted already."""
    score, harmful = model.decision_function(features), quartets["label"].eq("harmful").to_numpy()
    return auroc(score[harmful], score[~harmful])


def test_a_quartet_has_every_intent_under_every_cue(quartets):
    assert quartets["quartet_id"].nunique() >= 120
    for quartet_id, quartet in quartets.groupby("quartet_id"):
        assert len(quartet) == 4
        assert set(zip(quartet["label"], quartet["cue"], strict=True)) == CELLS
        assert quartet["pair_id"].tolist() == [f"{quartet_id}-{cue}" for cue in quartet["cue"]]
        assert quartet["category"].nunique() == 1


def test_categories_are_those_of_pairs_and_none_is_small(quartets):
    counts = quartets.groupby("category")["quartet_id"].nunique()
    assert set(counts.index) == set(load_contrast_set("pairs").table["category"])
    assert (counts >= 12).all()


def test_one_slot_changes(quartets):
    for quartet_id, quartet in quartets.groupby("quartet_id"):
        sentences = [words(text) for text in quartet["text"]]
        before = shared_length(sentences)
        rest = [sentence[before:] for sentence in sentences]
        after = shared_length([sentence[::-1] for sentence in rest])
        # The full stop alone is no end of a sentence that two slots could hide behind.
        assert before + after >= 4, quartet_id
        assert max(len(sentence) - after for sentence in rest) <= 10, quartet_id


def test_every_word_is_as_frequent_under_both_intents_within_its_quartet(quartets):
    for quartet_id, quartet in quartets.groupby("quartet_id"):
        harmful, harmless = (
            Counter(word for text in quartet.loc[quartet["label"].eq(label), "text"] for word in words(text))
            for label in ("harmful", "harmless")
        )
        assert harmful == harmless, quartet_id


def test_both_prompts_of_a_cue_hold_its_word(quartets):
    for quartet_id, quartet in quartets.groupby("quartet_id"):
        shared = {cue: set.intersection(*map(set, pair["text"].map(words))) for cue, pair in quartet.groupby("cue")}
        assert shared["alarming"] - shared["calm"], quartet_id
        assert shared["calm"] - shared["alarming"], quartet_id


def test_texts_are_short_and_new(quartets):
    text = quartets["text"]
    assert text.str.split().str.len().between(8, 20).all()
    assert not text.str.lower().duplicated().any()
    others = [load_contrast_set("pairs"), load_contrast_set("everyday"), load_transfer_set("probe-pairs")]
    assert not set(text.str.lower()) & {other.lower() for chosen in others for other in chosen.table["text"]}


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_length_tells_nothing(quartets, unit):
    length = (quartets["text"].str.split() if unit == "words" else quartets["text"]).str.len().to_numpy(float)
    harmful = quartets["label"].eq("harmful").to_numpy()
    assert abs(cohens_d(length[harmful], length[~harmful])) <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_model_learns_no_intent_from_other_quartets(quartets, name):
    assert nested_auroc(text_model(name), quartets["text"].to_numpy(), quartets) == CHANCE


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_model_of_pairs_sees_no_intent(quartets, name):
    pairs = load_contrast_set("pairs").table
    model = text_model(name).fit(pairs["text"], pairs["label"].eq("harmful"))
    assert transfer_auroc(model, quartets["text"].to_numpy(), quartets) == CHANCE


def test_a_word_that_goes_with_intent_would_be_seen(quartets):
    leak = np.where(quartets["label"].eq("harmful") & (np.arange(len(quartets)) % 3 == 0), " quietly", "")
    assert nested_auroc(text_model("words"), (quartets["text"] + leak).to_numpy(), quartets) > 0.6


@pytest.mark.real
def test_the_real_model_sees_no_intent_before_its_first_block(quartets):
    """The mean of its input embeddings is a text model too, and the strongest one that reads single words."""
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = fetch("qwen2.5-coder-0.5b-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        embedding = weights.get_tensor("model.embed_tokens.weight")

    def tokens(texts: pd.Series) -> list[list[int]]:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def mean_embedding(texts: pd.Series) -> np.ndarray:
        return np.stack([embedding[ids].float().mean(0).numpy() for ids in tokens(texts)])

    length = np.array([len(ids) for ids in tokens(quartets["text"])], float)
    harmful = quartets["label"].eq("harmful").to_numpy()
    assert abs(cohens_d(length[harmful], length[~harmful])) <= 0.1

    model, features = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
        mean_embedding(quartets["text"]),
    )
    assert nested_auroc(model, features, quartets) == CHANCE
    pairs = load_contrast_set("pairs").table
    for penalty in PENALTIES:
        model.set_params(logisticregression__C=penalty)
        model.fit(mean_embedding(pairs["text"]), pairs["label"].eq("harmful"))
        assert transfer_auroc(model, features, quartets) == CHANCE


def test_quartets_load_by_name_and_from_their_file(quartets):
    contrast, transfer = load_contrast_set("quartets"), load_transfer_set("quartets")
    with resources.as_file(resources.files("refusal_core.prompts").joinpath("data", "quartets.csv")) as path:
        uploaded = load_transfer_set(str(path))
    assert contrast.sha256 == transfer.sha256 == uploaded.sha256
    assert transfer.table["text"].tolist() == quartets["text"].tolist()
    assert transfer.table["pair_id"].value_counts().eq(2).all()
