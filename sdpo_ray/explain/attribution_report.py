"""Score interactions with a policy in memory, and write the advantages as a page, pictures and a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Run
from sdpo_ray.distill.attribution.token_attribution import noise_floor, token_attributions
from sdpo_ray.distill.model.hf_sampling import sample
from sdpo_ray.distill.model.load import load_policy
from sdpo_ray.errors import ConfigError
from sdpo_ray.explain.cases import Case
from sdpo_ray.records import BASE_VERSION, Consent, FinishReason, Interaction, Sampling, TokenAttribution, Turn
from sdpo_ray.report.token_html import strongest, write_html
from sdpo_ray.report.token_png import write_cells
from sdpo_ray.telemetry import Counters

_NOTABLE_NATS = 0.1
"""Advantage that changes a token's probability by about a tenth."""
_NUM_STRONGEST = 3
_NAME_CHARS = 20


class AttributionReport:
    """Token advantages of interactions under `policy`, which is held in memory in fp32.

    Raises ConfigError if the directory holds no policy.
    """

    def __init__(self, run: Run, policy: Path) -> None:
        if not (policy / "config.json").exists():
            raise ConfigError(
                f"there is no policy in {policy}: it must be a directory with config.json, a tokenizer and safetensors"
            )
        self._run = run
        self._model = _on_device(policy)
        self._chat = ChatFormat(policy)
        self._counts = Counters.empty()
        self._relevant: list[TokenAttribution] = []
        self._unrelated: list[TokenAttribution] = []

    def add(self, interactions: Sequence[Interaction]) -> None:
        """Score interactions; `write` reports them."""
        self._relevant += self._attributions(interactions)

    def add_case(self, case: Case, *, seed: int, max_tokens: int) -> None:
        """Score a case and its control. The policy samples the answer if the case has none."""
        turn = self._sampled(case, seed, max_tokens) if case.completion is None else _stated(case, case.completion)
        self._relevant += self._attributions([_interaction(case, turn, case.follow_up)])
        if case.unrelated is not None:
            self._unrelated += self._attributions([_interaction(case, turn, case.unrelated)])

    def write(self, out: Path, title: str) -> None:
        """Write the page and the figure of cells into `out`; print the table and the paths.

        Raises ConfigError if every interaction was refused.
        """
        refused = ", ".join(f"{reason}: {n}" for reason, n in sorted(self._counts.values.items()))
        if not self._relevant:
            raise ConfigError(f"nothing to draw ({refused}); sdpo_ray/distill/data/examples.py explains these reasons")
        out.mkdir(parents=True, exist_ok=True)
        write_html(self._relevant, out / "index.html", title=title, unrelated=self._unrelated)
        write_cells(self._relevant, out / "cells.png", unrelated=self._unrelated)
        console = Console()
        console.print(self._table())
        if refused:
            console.print(f"refused or altered: {refused}")
        for file in ("index.html", "cells.png"):
            console.print(str(out / file), soft_wrap=True)

    def _attributions(self, interactions: Sequence[Interaction]) -> list[TokenAttribution]:
        return token_attributions(
            self._model,
            self._chat,
            interactions,
            config=self._run.distill,
            max_model_len=self._run.policy.max_model_len,
            refused=self._counts,
        )

    def _sampled(self, case: Case, seed: int, max_tokens: int) -> Turn:
        room = self._run.policy.max_model_len - len(self._chat.prompt_ids(case.messages))
        if room < 1:
            raise ConfigError(f"{case.name}: the prompt alone exceeds policy.max_model_len")
        return sample(
            self._model,
            self._chat,
            case.messages,
            turn_id=case.name,
            policy_version=BASE_VERSION,
            seed=seed,
            max_tokens=min(max_tokens, room),
        )

    def _table(self) -> Table:
        floor = noise_floor(self._model, self._chat)
        table = Table(Column(no_wrap=True, max_width=_NAME_CHARS), box=None)
        for name in ("tokens", "mean |A|", "> noise", f"> {_NOTABLE_NATS}"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("strongest tokens")
        table.caption = f"A = log p(y|x,o) - log p(y|x) in nats; noise: up to {floor:.0e} from rounding"
        controls = {attribution.interaction_id: attribution for attribution in self._unrelated}
        for attribution in self._relevant:
            _add_row(table, attribution.interaction_id, attribution, floor)
            if attribution.interaction_id in controls:
                _add_row(table, "  control", controls[attribution.interaction_id], floor)
        return table


def _add_row(table: Table, name: str, attribution: TokenAttribution, floor: float) -> None:
    sizes = [abs(advantage) for advantage in attribution.advantages]
    table.add_row(
        Text(name),
        str(len(sizes)),
        f"{sum(sizes) / len(sizes):.3f}",
        f"{sum(size > floor for size in sizes) / len(sizes):.0%}",
        f"{sum(size > _NOTABLE_NATS for size in sizes) / len(sizes):.0%}",
        Text(" ".join(f"{cell.text.strip()!r} {cell.advantage}" for cell in strongest(attribution)[:_NUM_STRONGEST])),
    )


def _on_device(policy: Path) -> Any:
    import torch

    try:
        return load_policy(policy).to("cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the policy in {policy} cannot be loaded: {error}") from None


def _stated(case: Case, completion: str) -> Turn:
    return Turn(
        turn_id=case.name,
        tenant="",
        user="",
        conversation_id="",
        consent=Consent.NONE,
        messages=case.messages,
        response=completion,
        prompt_ids=(),
        response_ids=(),
        response_logprobs=(),
        version_spans=(),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=0, seed=None),
        started_at_s=0.0,
        finished_at_s=0.0,
    )


def _interaction(case: Case, turn: Turn, follow_up: str) -> Interaction:
    return Interaction(
        interaction_id=case.name,
        turn=turn,
        follow_up=follow_up,
        follow_up_turn_id="",
        follow_up_at_s=0.0,
        conversation=case.name,
    )
