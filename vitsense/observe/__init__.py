"""The only place that touches a running model: hooks, the torch-function mode, and replay.

`observing` visits the tensor at a site and may replace it; `Session` does the same many times and
can compute only what comes after a module. After any use, also after an exception, the model is
as it was found.
"""

from vitsense.observe.gradients import Flow, FlowSession, flowing
from vitsense.observe.operations import Call, Op
from vitsense.observe.replay import ReplaySession
from vitsense.observe.stack import intercepting, preserved
from vitsense.observe.visiting import Observer, Visit, observing

__all__ = [
    "Call",
    "Flow",
    "FlowSession",
    "Observer",
    "Op",
    "ReplaySession",
    "Visit",
    "flowing",
    "intercepting",
    "observing",
    "preserved",
]
