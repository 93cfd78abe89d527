"""The types that a program sees through `import llm_lora`; mypy checks them, nothing runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import assert_type

    import llm_lora as ll

    def train(recipe: str) -> None:
        run = ll.train(recipe, overrides=["lora.rank=4"], runs="runs", resume=True)
        assert_type(run, ll.Run)
        assert_type(run.name, str)
        assert_type(ll.load_run(run), ll.Run)
        assert_type(run.report.passed, bool)
        assert_type(run.report.adapter.constrained.all.field_f1, float | None)

    def judge(schema: ll.Schema) -> None:
        verdict = ll.judge("{}", schema)
        assert_type(verdict, ll.Verdict)
        assert_type(verdict.valid, bool)

    def ask(run: ll.Run) -> None:
        with ll.Chat(run) as chat:
            answer = chat.ask("?")
        assert_type(answer, ll.Answer)
        assert_type(answer.verdict, ll.Verdict | None)

    def publish(run: ll.Run) -> None:
        version = ll.publish(run, "name", store="store")
        assert_type(version, ll.Version)
        assert_type(ll.promote("name", version), ll.Version)
        assert_type(ll.rollback("name"), ll.Version)

    def serve(run: ll.Run) -> None:
        with ll.serve(run, port=8000) as server:
            assert_type(server, ll.Server)
            assert_type(server.url, str)
