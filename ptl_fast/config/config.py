"""All settings of a run, in groups; names are unique, so flags and YAML files omit the group."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from ptl_fast.config import rules
from ptl_fast.config.checking import FREE, ROUNDING, flag, unknown
from ptl_fast.config.data import DataSettings
from ptl_fast.config.distill import DistillSettings
from ptl_fast.config.evaluation import EvaluationSettings
from ptl_fast.config.gate import GateSettings
from ptl_fast.config.goal import GoalSettings
from ptl_fast.config.grpo import GrpoSettings
from ptl_fast.config.model import ModelSettings
from ptl_fast.config.opd import OpdSettings
from ptl_fast.config.prune import PruneSettings
from ptl_fast.config.recovery import RecoverySettings
from ptl_fast.config.run import RunSettings
from ptl_fast.config.score import ScoreSettings
from ptl_fast.config.traces import TracesSettings
from ptl_fast.config.trainer import TrainerSettings

LARGEST = 10**15


@dataclass(kw_only=True)
class Config:
    """Settings of ``python -m ptl_fast.compress`` and of ``ptl_fast.compress(...)``.

    Only ptl_fast.run has all of it; each stage is given its own group, or plain values.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    traces: TracesSettings = field(default_factory=TracesSettings)
    goal: GoalSettings = field(default_factory=GoalSettings)
    prune: PruneSettings = field(default_factory=PruneSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    opd: OpdSettings = field(default_factory=OpdSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    run: RunSettings = field(default_factory=RunSettings)

    @classmethod
    def from_flat(cls, **settings: Any) -> "Config":
        """Make a Config from settings by name, without groups; the others have their defaults.

        Values are not checked here; see ``check``.

        Raises:
            TypeError: there is no such setting.
        """
        unknown = settings.keys() - FIELDS.keys()
        if unknown:
            raise TypeError(f"there is no setting {', '.join(sorted(unknown))}")
        # each group takes the settings that are its fields
        groups = {}
        for name, group in GROUPS.items():
            own = {each.name for each in dataclasses.fields(group)} & settings.keys()
            groups[name] = group(**{each: settings[each] for each in own})
        return cls(**groups)

    def flat(self) -> dict[str, Any]:
        """Return {setting: value} of all groups, the input of ``from_flat``."""
        return {
            name: value
            for group in GROUPS
            for name, value in dataclasses.asdict(getattr(self, group)).items()
        }

    def changed(self, **settings: Any) -> "Config":
        """Return a copy in which these settings have other values."""
        return Config.from_flat(**{**self.flat(), **settings})

    def check(self) -> None:
        """Raise ValueError for settings that are wrong whatever the model and the data are."""
        flat = self.flat()
        for name, hint in HINTS.items():
            choices = typing.get_args(hint)
            # Python does not enforce Literal
            if typing.get_origin(hint) is Literal and flat[name] not in choices:
                raise ValueError(unknown(flag(name), flat[name], choices))
        # before the groups calculate with them: far below what overflows, far above any use
        for name, value in flat.items():
            if isinstance(value, int) and abs(value) > LARGEST:
                raise ValueError(
                    f"{flag(name)} {value} is beyond {LARGEST:,}, which no run could do"
                )
        for group in GROUPS:
            getattr(self, group).check()
        # after the groups, whose own errors are the simpler ones
        rules.check(
            self.model,
            self.data,
            self.prune,
            self.goal,
            self.recovery,
            self.trainer,
            self.gate,
            self.traces,
            needs_data=not self.run.dry_run,
        )

    def as_begun(self, saved: dict[str, Any]) -> tuple["Config", dict[str, Any]]:
        """The settings with which a run goes on that began when some defaults were others.

        Args:
            saved: the ``identity`` of the run as it began; lacks settings that are newer.

        Returns:
            The settings, and those among them that are now former defaults.
        """
        flat = self.flat()
        former = {
            name: each.metadata["former_default"]
            for name, each in FIELDS.items()
            if "former_default" in each.metadata and flat[name] == each.default
        }
        kept = {name: value for name, value in former.items() if saved.get(name, value) == value}
        return self.changed(**kept), kept

    def identity(self) -> dict[str, Any]:
        """Return {setting: value} of those that decide the result; state.json keeps them.

        A run is resumed only if they are equal, but for those in RESUME_ROUNDING.
        """
        unread = {
            each.name
            for group in OWN_GROUPS
            if group not in self.recovery.all_recoveries
            for each in dataclasses.fields(GROUPS[group])
        }
        return {
            name: value for name, value in self.flat().items() if name not in RESUME_FREE | unread
        }


# looked up once: flags, checks and the resume rules all follow from the dataclasses
GROUPS: dict[str, Any] = {each.name: each.type for each in dataclasses.fields(Config)}
"""{name of a group: its dataclass}"""
OWN_GROUPS = ("grpo", "opd")
"""Groups that only the recovery of their name reads."""
FIELDS = {each.name: each for group in GROUPS.values() for each in dataclasses.fields(group)}
"""{setting: its dataclass field}"""
HINTS = {
    name: hint for group in GROUPS.values() for name, hint in typing.get_type_hints(group).items()
}
"""{setting: its type annotation}"""
RESUME_FREE = {name for name, each in FIELDS.items() if each.metadata == FREE}
"""Settings that may be different when a run is resumed: they do not change the result."""
RESUME_ROUNDING = {name for name, each in FIELDS.items() if each.metadata == ROUNDING}
"""Settings that may be different too, although they change rounding errors."""
WITHOUT = {
    name: each.metadata.get("former_default", each.default)
    for name, each in FIELDS.items()
    if each.default is not dataclasses.MISSING
}
"""What a run did whose state.json lacks a setting, because it began before there was one: the
field's metadata says it, or it is the default.
"""
