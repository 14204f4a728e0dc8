"""What `transformers` makes of our folders, and we of its."""

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers

MODELS = {
    "tiny": transformers.BertForPreTraining,
    "mini": transformers.BertForPreTraining,
    "headless": transformers.BertForMaskedLM,
}


def load(folder: pathlib.Path, model_class: type) -> transformers.PreTrainedModel:
    """The model in inference mode; nothing in the folder is missing or left over."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    if model_class is transformers.BertForPreTraining:
        assert not report["unexpected_keys"]
    return model.eval()


def answers(
    model: transformers.PreTrainedModel, rows: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        outputs = model(**{name: torch.tensor(rows[name], dtype=torch.long) for name in names})
        encoded = model.bert(**{name: torch.tensor(rows[name], dtype=torch.long) for name in names})
    everywhere = outputs["prediction_logits" if "prediction_logits" in outputs else "logits"]
    found = {
        "sequence_output": encoded.last_hidden_state.numpy(),
        "mlm_logits": np.take_along_axis(
            everywhere.numpy(), rows["positions"][:, :, None].astype(np.int64), axis=1
        ),
    }
    if "seq_relationship_logits" in outputs:
        found["next_sentence"] = outputs["seq_relationship_logits"].numpy()
        found["pooled_output"] = encoded.pooler_output.numpy()
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_agree(name: str, runs: pathlib.Path) -> None:
    """At most 1e-5 on 64 pairs of real sentences, in float32 on both sides."""
    rows = dict(np.load(runs / name / "logits.npz"))
    assert rows["input_ids"].shape[0] == 64
    found = answers(load(runs / name / "export", MODELS[name]), rows)
    assert ("next_sentence" in found) == (name != "headless")
    for output, answer in found.items():
        difference = float(np.abs(answer - rows[output]).max())
        print(f"{name} {output}: largest difference {difference:.1e}")
        assert rows[output].std() > 0.1
        assert difference <= 1e-5, output


@pytest.mark.parametrize("tokenizer_class", ["AutoTokenizer", "BertTokenizerFast"])
def test_tokenizers_cut_as_training_did(tokenizer_class: str, runs: pathlib.Path) -> None:
    expected = np.load(runs / "tiny" / "logits.npz")
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(runs / "tiny" / "export")
    lines = [str(line) for line in expected["lines"]]
    cut = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert [len(ids) for ids in cut] == list(expected["lengths"])
    assert [index for ids in cut for index in ids] == list(expected["ids"])
    pair = tokenizer(lines[0], lines[1])
    assert pair["input_ids"][0] == tokenizer.cls_token_id
    assert pair["input_ids"].count(tokenizer.sep_token_id) == 2
    assert set(pair["token_type_ids"]) == {0, 1}
    assert tokenizer.model_max_length == 64
    assert tokenizer.mask_token_id == expected["input_ids"][0, expected["positions"][0, 0]]


def test_masks_are_filled(runs: pathlib.Path) -> None:
    fill = transformers.pipeline("fill-mask", model=str(runs / "headless" / "export"))
    words = fill("the value of the [MASK] is")
    assert len(words) == 5 and all(0 <= word["score"] <= 1 for word in words)


SAVED = ("BertForPreTraining", "BertForMaskedLM", "BertModel")


@pytest.fixture(scope="module")
def converted(
    runs: pathlib.Path, project: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Models that transformers drew and saved, and what Model Garden computes of each."""
    folder = tmp_path_factory.mktemp("converted")
    config = transformers.BertConfig.from_pretrained(runs / "tiny" / "export")
    config.initializer_range = 0.2
    for name in SAVED:
        torch.manual_seed(0)
        saved = folder / name / "saved"
        getattr(transformers, name)(config).save_pretrained(saved)
        (saved / "vocab.txt").write_bytes((runs / "vocab.txt").read_bytes())
    project("convert", folder, runs / "text.txt")
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_what_transformers_saves_is_converted(name: str, converted: pathlib.Path) -> None:
    """A model that transformers drew, through its file, computes the same in Model Garden."""
    model = getattr(transformers, name).from_pretrained(converted / name / "saved").eval()
    rows = dict(np.load(converted / name / "logits.npz"))
    if name == "BertModel":
        names = ("input_ids", "attention_mask", "token_type_ids")
        with torch.no_grad():
            outputs = model(**{each: torch.tensor(rows[each], dtype=torch.long) for each in names})
        found = {
            "sequence_output": outputs.last_hidden_state.numpy(),
            "pooled_output": outputs.pooler_output.numpy(),
        }
    else:
        found = answers(model, rows)
    assert ("next_sentence" in rows) == (name == "BertForPreTraining")
    for output, answer in found.items():
        np.testing.assert_allclose(rows[output], answer, rtol=0, atol=1e-5, err_msg=output)
