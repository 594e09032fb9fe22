"""The plugin that TensorBoard loads: the page's files, and answers to its questions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard.backend.http_util import Respond
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug.wrappers import Request, Response

from torch_dmft.tab import answers
from torch_dmft.tab.older import older_runs
from torch_dmft.tab.runs import Library
from torch_dmft.tab.static_files import MIME_TYPES, static_files


class DMFTPlugin(TBPlugin):
    """The tab "DMFT": shows the records that stand beside the event files of a log directory."""

    plugin_name = "dmft"

    def __init__(self, context: TBContext) -> None:
        """Take the log directory from TensorBoard; nothing is read yet."""
        self.library = Library(_roots(context), partial(older_runs, context.data_provider))
        self._warmed = False

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        """A route for each question, and one for the page's files."""
        return {"/static/*": self._static, **{f"/data/{question}": self._answer for question in answers.QUESTIONS}}

    def is_active(self) -> bool:
        """Whether there is anything to show; TensorBoard asks when its page opens."""
        active = bool(self.library.runs())
        if active and not self._warmed:
            self._warmed = True
            self.library.warm()
        return active

    def frontend_metadata(self) -> FrontendMetadata:
        """What TensorBoard calls the tab, and how it begins."""
        return FrontendMetadata(es_module_path="/static/index.js", tab_name="DMFT")

    @Request.application  # type: ignore[arg-type]
    def _static(self, request: Request) -> Response:
        name = request.path.partition(f"/{self.plugin_name}/static/")[2]
        path = static_files().get(name)
        if path is None:
            return Respond(request, "There is no such file.", "text/plain", code=404)
        return Respond(request, path.read_bytes(), MIME_TYPES[path.suffix])

    @Request.application  # type: ignore[arg-type]
    def _answer(self, request: Request) -> Response:
        question = request.path.rpartition("/")[2]
        try:
            answer = answers.answer(self.library, question, request.args.to_dict())
        except answers.NoAnswerError as error:
            return Respond(request, json.dumps({"problem": str(error.args[0])}), "application/json", code=404)
        return Respond(request, json.dumps(answer, allow_nan=False), "application/json")


def _roots(context: TBContext) -> dict[str, Path]:
    """Directories by name: of ``--logdir`` one without a name, of ``--logdir_spec`` any number."""
    if context.logdir:
        return {} if "://" in context.logdir else {"": Path(context.logdir).expanduser()}
    roots = {}
    for part in (getattr(context.flags, "logdir_spec", "") or "").split(","):
        name, colon, path = part.partition(":")
        if part and "://" not in part:
            roots[name if colon else ""] = Path(path if colon else part).expanduser()
    return roots
