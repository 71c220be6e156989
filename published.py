"""How other code names the weights of our methods: one row of `FOREIGN` for each kind of published file."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


BRANCHES = {r"streams\.visible\.": "visible_module.visible.", r"shared\.": "base_resnet.base.",
            r"streams\.infrared\.": "thermal_module.thermal."}


@dataclass(frozen=True)
class Foreign:
    """How other code names the weights of one of our methods.

    method: a name in METHODS; changes: what its forward pass does otherwise, as `--set` says it; signs:
    prefixes of names that tell its files; names: patterns of the beginning of our names, and what it has in
    their place, before those of BRANCHES (the first that fits counts, what none fits is the same); resnets:
    prefixes under which a file holds a whole ResNet, of which some stages are used; unused: prefixes of other
    names that are not used.
    """

    method: str
    signs: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)
    resnets: tuple[str, ...] = tuple(BRANCHES.values())
    unused: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def translate(self, ours: str) -> str:
        """Their name of one of our weights."""
        for pattern, theirs in (*self.names.items(), *BRANCHES.items()):
            if re.match(pattern, ours):
                return re.sub(pattern, theirs, ours, count=1)
        return ours


DEEN = {r"channels\.layer(\d)\.": r"MFA\1.CNL.", r"positions\.layer(\d)\.": r"MFA\1.PNL.",
        **{rf"expansion\.dilated\.{branch}\.{number}\.": f"DEE.FC{branch + 1}{number + 1}."
           for branch in range(2) for number in range(3)},
        **{rf"expansion\.restore\.{branch}\.": f"DEE.FC{branch + 1}." for branch in range(2)}}
FOREIGN = (  # the first whose sign a file has counts
    Foreign("cgrnet", changes=("graph=None", "similarity=energy"),
            signs=("visible_block.", "thermal_block.", "common_block.", "cam1.", "cam2."),
            names={r"streams\.visible\.layer1\.": "visible_block.base.layer1.",
                   r"streams\.infrared\.layer1\.": "thermal_block.base.layer1.",
                   r"shared\.layer2\.": "common_block.base.layer2.",
                   r"similarity\.visible\.": "cam1.", r"similarity\.infrared\.": "cam2."},
            resnets=(*BRANCHES.values(), "visible_block.base.", "thermal_block.base.", "common_block.base."),
            unused=("local2local.", "local2global.", "global2local.")),
    Foreign("agw", signs=("NL_",),  # CAJ's network is the same
            names={r"non_local\.layer(\d)\.(\d)\.g\.": r"NL_\1.\2.g.0.", r"non_local\.layer": "NL_"}),
    Foreign("ddag", signs=("wpa.fc1.",),
            names={r"wpa\.query\.": "wpa.fc1.0.", r"wpa\.key\.": "wpa.fc2.", r"wpa\.value\.": "wpa.fc3."},
            unused=("wpa.W.", "attention_", "out_att.", "classifier1.", "classifier2.")),
    Foreign("deen", signs=("MFA3.",), names=DEEN),
    Foreign("deen", signs=("DEE.",), names=DEEN, changes=("expand_after=2",)),  # for RegDB
    Foreign("dns", signs=("base.HSS",),
            names={r"streams\.visible\.": "visible.visible.", r"streams\.infrared\.": "thermal.thermal.",
                   r"shared\.": "base.base.", r"common\.": "CSS.",
                   r"shifts\.layer(\d)\.reduce\.": r"base.HSS\1.channel_attention.",
                   r"shifts\.layer(\d)\.rows\.": r"base.HSS\1.conv_h.",
                   r"shifts\.layer(\d)\.columns\.": r"base.HSS\1.conv_w."},
            resnets=("visible.visible.", "thermal.thermal.", "base.base."), unused=("DD.",)),
    Foreign("base", signs=tuple(BRANCHES.values())),
)


def find_foreign(names: Iterable[str]) -> Foreign | None:
    """The code whose names a state dict has, None for ours or an unknown one."""
    return next((row for row in FOREIGN if any(name.startswith(row.signs) for name in names)), None)
