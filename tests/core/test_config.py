# SPDX-License-Identifier: Apache-2.0
"""Configuration sections: every mistake in a file is named, with its path."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, ValidationError, model_validator

from pcseg_core.config import Section, load_yaml, parse_section, read_yaml
from pcseg_core.errors import MAX_MESSAGE, InputError


class Optimizer(Section):
    learning_rate: float = Field(1e-3, gt=0, description="Step size.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="Decay rates.")


class Recipe(Section):
    epochs: int = Field(10, ge=1, le=1000, description="Passes over the data.")
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer.")
    stages: tuple[Optimizer, ...] = Field((), description="Optimizers one after another.")
    warmup: Optimizer | None = Field(None, description="Optimizer of the first epoch.")


class Needed(Section):
    source: str = Field(description="No default.")


class Span(Section):
    first: int = Field(0, description="Start.")
    last: int = Field(1, description="End.")

    @model_validator(mode="after")
    def _check_order(self) -> Span:
        if self.last < self.first:
            raise ValueError("last is before first")
        return self


class Plan(Section):
    span: Span = Field(Span(), description="Sweeps.")


def load(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_yaml(path, Recipe)


def test_values_and_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, "epochs: 3\noptimizer: {learning_rate: 0.1}\n")
    assert (recipe.epochs, recipe.optimizer.learning_rate) == (3, 0.1)
    assert recipe.optimizer.betas == (0.9, 0.99)
    assert load(tmp_path, "") == Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 4  # type: ignore[misc]


def test_all_mistakes_are_listed_at_once_with_their_paths(tmp_path: Path) -> None:
    text = """
    epoch: 3
    epochs: 0
    optimizer: {learning_rat: 0.1, betas: [1]}
    stages: [{}, {learning_rate: fast}]
    warmup: {beta: [1, 2]}
    """
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    message = str(error.value)
    assert "recipe.yaml" in message
    assert "unknown key 'epoch' (did you mean 'epochs'?)" in message
    assert "'epochs' is 0: Input should be greater than or equal to 1" in message
    assert "unknown key 'optimizer.learning_rat' (did you mean 'learning_rate'?)" in message
    assert "optimizer.betas" in message
    assert "unknown key 'warmup.beta' (did you mean 'betas'?)" in message
    assert "'stages.1.learning_rate' is 'fast'" in message


def test_values_that_do_not_fit_each_other_are_told_by_the_reason_alone() -> None:
    wrong = {"first": 2, "last": 1}
    for values, section, told in (
        (wrong, Span, "plan: last is before first"),
        ({"span": wrong}, Plan, "plan: span: last is before first"),
    ):
        with pytest.raises(InputError) as error:
            parse_section(values, section, "plan")
        assert str(error.value) == told


def test_unknown_key_without_a_likeness_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known keys: epochs, optimizer, stages"):
        load(tmp_path, "qqq: 1")


def test_missing_value_is_named() -> None:
    with pytest.raises(InputError, match="parameters: 'source' is required"):
        parse_section({}, Needed, source="parameters")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[1, 2]", "found a list"), ("a: [1", "not valid YAML"), ("just words", "found a str")],
)
def test_files_that_are_no_mapping(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load(tmp_path, text)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*nothing\.yaml"):
        load_yaml(tmp_path / "nothing.yaml", Recipe)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot read"):
        load_yaml(tmp_path / "binary.yaml", Recipe)


def test_wrong_default_is_found_when_the_section_is_made() -> None:
    class Wrong(Section):
        epochs: int = Field(0, ge=1)

    with pytest.raises(ValidationError):
        Wrong()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "a: &a [*a]",
        f"a: {'9' * 5000}",
        f"a: 0x{'f' * 5000}",
        "a: 2026-13-45",
        "[" * 5000,
        "a: !!timestamp x",
    ],
)
def test_yaml_that_cannot_be_held_is_refused_with_its_name(tmp_path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml") as caught:
        read_yaml(path)
    assert len(str(caught.value)) < 700


def test_messages_are_bounded_and_keep_their_start_and_end(tmp_path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("\n".join(f"wrong{number}: 1" for number in range(5000)))
    with pytest.raises(InputError) as caught:
        load_yaml(path, Recipe)
    message = str(caught.value)
    assert len(message) == MAX_MESSAGE and "many.yaml: unknown key 'wrong0'" in message
    assert "wrong4999" in message[-400:]


def test_yaml_with_a_few_aliases_reads(tmp_path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text("base: &b {lr: 0.1}\nrun: {<<: *b, steps: 3}\n")
    assert read_yaml(path)["run"] == {"lr": 0.1, "steps": 3}
