"""The stages of the wheel, wired for one run: what `sdpo_ray.cycle` calls, with every real part behind it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.curate.stream import Curator
from sdpo_ray.cycle import Begun, Outcome, Stages
from sdpo_ray.distill.launch import distill
from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.evaluate.endpoint import Answers, generate, load_answers, save_answers
from sdpo_ray.evaluate.suite import examine
from sdpo_ray.promote import gate
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm, point_at
from sdpo_ray.records import Candidate, Decision, Release, Report, Snapshot, Verdict
from sdpo_ray.simulate.users import PERSONAS, judge
from sdpo_ray.simulate.world import held_out_prompts, is_right
from sdpo_ray.storage import Layout, read_json, write_json
