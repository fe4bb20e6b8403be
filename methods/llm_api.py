"""A language model behind an OpenAI-compatible endpoint, asked for one of the candidates: RSLLM's GPT-4 row (table 2).

    export GENREC_BENCH_API_URL=https://api.openai.com/v1 GENREC_BENCH_API_MODEL=gpt-4 GENREC_BENCH_API_KEY=...
    genrec-bench run suites/rsllm_gpt4.yaml

One request a row, greedy; the question is RSLLM's text-only prompt in our own words. Answers are kept under
$GENREC_BENCH_HOME/artefacts/answers, so a run that broke off asks only for the rest, and one with ``offline`` asks for
nothing. The key is read from the environment alone; a server that wants none takes any word for one. The harness asks
for validation before test, so a run costs both.

Deviation: RSLLM says neither which version of GPT-4 it asked, nor when, nor how; its figures cannot be made again.
"""

import copy
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, JsonValue, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import Histories, TrainView
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Choice, Context, Method
from genrec_bench.methods.candidates.answers import AnswerStore
from genrec_bench.methods.candidates.endpoint import Endpoint, EndpointError, Meter, Reply, checked_url
from genrec_bench.methods.candidates.parsing import RULES
from genrec_bench.methods.candidates.wording import CandidatesConfig, Question, QuestionWriter

URL, MODEL, KEY = "GENREC_BENCH_API_URL", "GENREC_BENCH_API_MODEL", "GENREC_BENCH_API_KEY"
# Parts of a request that ``parameters`` cannot set.
OURS = frozenset({"max_tokens", "messages", "model", "n", "seed", "stream", "temperature"})

NEWS_EVERY = 50  # answers

Body = dict[str, JsonValue]


def _model_of_the_environment() -> str:
    return os.environ.get(MODEL, "")


class LLMApiConfig(CandidatesConfig):
    """Lengths are in characters. What costs money has no default: budgets and prices are None until they are set."""

    model: str = Field(default_factory=_model_of_the_environment)  # part of the run's identity wherever it comes from
    temperature: NonNegativeFloat | None = 0.0  # None: not sent; but for 0 the run's seed is sent too
    max_tokens: PositiveInt | None = 64  # of an answer (LLaRA's released code); None: not sent
    parameters: dict[str, JsonValue] = Field(default_factory=dict)  # further ones of the request
    url: str | None = None  # None: $GENREC_BENCH_API_URL
    concurrency: PositiveInt = 4  # requests under way
    timeout_s: PositiveFloat = 60.0  # of one request
    tries: PositiveInt = 8  # of one request
    wait_s: PositiveFloat = 1.0  # longest wait after the first failure; it doubles with each
    longest_wait_s: PositiveFloat = 120.0
    budget_requests: PositiveInt | None = None  # of one run, retries among them
    budget_tokens: PositiveInt | None = None  # of one run; requests that are under way may exceed it
    price_prompt: NonNegativeFloat | None = None  # US dollars for a million tokens
    price_completion: NonNegativeFloat | None = None
    offline: bool = False  # ask for nothing: every answer is there, or the run is refused

    incidental: ClassVar[frozenset[str]] = frozenset(
        {
            "url", "concurrency", "timeout_s", "tries", "wait_s", "longest_wait_s", "budget_requests", "budget_tokens",
            "price_prompt", "price_completion", "offline",
        }
    )  # fmt: skip

    @field_validator("url")
    @classmethod
    def _url_can_be_recorded(cls, url: str | None) -> str | None:
        if url is not None:
            checked_url(url)
        return url

    @field_validator("parameters")
    @classmethod
    def _parameters_are_not_ours(cls, parameters: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(OURS & parameters.keys()):
            raise ValueError(f"'{taken[0]}' is set by the method itself, from llm_api's other settings")
        return parameters


class LLMApi(Method):
    """A language model behind an OpenAI-compatible endpoint, asked which candidate comes next."""

    Config = LLMApiConfig
    published_as = "GPT-4"
    family = "language"

    def fit(self, train: TrainView, context: Context) -> None:
        if not self.config.model:
            raise InputError(f"llm_api has no model to ask: set llm_api.model or ${MODEL}")
        if not (train.items["title"] != "").any():
            raise InputError(f"llm_api: none of the {train.num_items} items has a title to ask about")
        self.writer = QuestionWriter(train.items, self.config)
        self.answers = AnswerStore(context.artefacts.root / "answers")
        self.meter = Meter(self.config.budget_requests, self.config.budget_tokens)
        self.seed, self.log = context.seed, context.log
        self.replies: dict[str, Reply] = {}  # by the hash of the request: what this run has used

    def choose(self, histories: Histories, candidates: np.ndarray) -> Choice:
        questions = [self.writer.ask(histories.row(b), candidates[b]) for b in range(len(histories))]
        bodies = [self._body(question) for question in questions]
        keys = [canonical_hash(body) for body in bodies]
        wanted = dict(zip(keys, bodies, strict=True))  # equal questions are asked once
        for key in wanted.keys() - self.replies.keys():
            if (known := self.answers.get(wanted[key])) is not None:
                self.replies[key] = known
        missing = {key: body for key, body in wanted.items() if key not in self.replies}
        try:
            if missing:
                self._ask(missing, len(wanted))
        finally:
            self._report(questions, keys)
        asked = zip(questions, keys, strict=True)
        picked = [question.picked(self.replies[key].text, self.config.match) for question, key in asked]
        return Choice(np.array(picked, dtype=np.int64))

    def save(self, folder: Path) -> None:
        """Nothing is learnt; the answers stay where they are."""

    def load(self, folder: Path, train: TrainView, context: Context) -> None:
        self.fit(train, context)

    def variants(self) -> dict[str, Method]:
        """The same answers read by the other rule."""
        other = copy.copy(self)
        (match,) = RULES.keys() - {self.config.match}
        other.config = self.config.model_copy(update={"match": match})
        return {f"match {match}": other}

    def published_variant(self) -> str | None:
        model: str = self.config.model
        return None if model == "gpt-4" or model.startswith("gpt-4-") else model

    def _body(self, question: Question) -> Body:
        """A request without its address: what determines the answer."""
        config = self.config
        body: Body = {"model": config.model, "messages": [{"role": "user", "content": question.text()}]}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if config.temperature != 0:  # the endpoint draws: each seed has answers of its own
            body["seed"] = self.seed
        if config.max_tokens is not None:
            body["max_tokens"] = config.max_tokens
        return {**body, **config.parameters}

    def _ask(self, missing: Mapping[str, Body], total: int) -> None:
        """Get all missing answers, each kept as it comes. Raises InputError where some cannot be had."""
        config = self.config
        if config.offline:
            raise InputError(f"llm_api.offline: {len(missing)} of {total} answers are missing in {self.answers.root}")
        failures: list[Exception] = []
        try:
            endpoint = self._endpoint()
        except (EndpointError, ValueError) as error:
            raise self._unanswered(str(error), missing, total) from None

        def ask(key: str) -> None:
            if failures:
                return
            try:
                reply = endpoint.complete(missing[key])
                self.answers.put(missing[key], reply)
                self.replies[key] = reply
            except Exception as error:  # raised again below, once the other threads are done
                failures.append(error)
                endpoint.stop()

        with ThreadPoolExecutor(config.concurrency) as pool:
            for done, _ in enumerate(pool.map(ask, missing), 1):
                if done % NEWS_EVERY == 0:
                    self.log(answered=done, of=len(missing))
        if failures and isinstance(failures[0], EndpointError):
            raise self._unanswered(str(failures[0]), missing, total) from None
        if failures:
            raise failures[0]

    def _unanswered(self, reason: str, missing: Mapping[str, Body], total: int) -> InputError:
        left = sum(key not in self.replies for key in missing)
        return InputError(
            f"llm_api: {reason}. {total - left} of {total} answers are kept; the same command asks for the other {left}"
        )

    def _endpoint(self) -> Endpoint:
        config = self.config
        url, key = config.url or os.environ.get(URL, ""), os.environ.get(KEY, "")
        if not url:
            raise EndpointError(f"no address to ask: set llm_api.url or ${URL}, such as https://api.openai.com/v1")
        if not key.strip():
            raise EndpointError(f"no key: set ${KEY} (any word, for a server that wants none)")
        return Endpoint(
            url, key, self.meter, timeout_s=config.timeout_s, tries=config.tries, wait_s=config.wait_s,
            longest_wait_s=config.longest_wait_s, rng=random.Random(self.seed),
        )  # fmt: skip

    def _report(self, questions: list[Question], keys: list[str]) -> None:
        """Counts for the record: tokens and cost of all answers that the run has used, whenever they were paid for.

        ``asked`` of them were answered in this run; ``valid`` counts those of the last rows that name a candidate.
        """
        config, replies = self.config, self.replies.values()
        prompt = sum(reply.prompt_tokens or 0 for reply in replies)
        completion = sum(reply.completion_tokens or 0 for reply in replies)
        priced = config.price_prompt is not None and config.price_completion is not None
        cost = (prompt * config.price_prompt + completion * config.price_completion) / 1e6 if priced else None
        pairs = zip(questions, keys, strict=True)
        answered = [(question, self.replies[key]) for question, key in pairs if key in self.replies]
        self.log(
            stage="api",
            model=config.model,
            answered_by=sorted({reply.model for reply in replies if reply.model}),
            hosts=sorted({reply.host for reply in replies if reply.host}),
            answers=len(replies),
            answers_without_count=sum(reply.prompt_tokens is None for reply in replies),
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=None if cost is None else round(cost, 6),
            asked=self.meter.answers,
            requests=self.meter.requests,
            retries=self.meter.retries,
            valid={rule: sum(q.picked(reply.text, rule) >= 0 for q, reply in answered) for rule in RULES},
        )
