"""An answer on the terminal as it arrives: thoughts apart from the text, then tokens, cost and route. Ctrl-C ends it.

`.venv/bin/python examples/stream_to_terminal.py What does a signal box do?`; with `--think` the model is asked to show its thoughts.
"""

import argparse
import sys

from app.bootstrap import build_llm_service
from app.llm import LLMRequest, LLMResponse, Message, TextDelta, ThinkingDelta

from provider import provider, run

INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C ended: 128 and the number of SIGINT."""


async def main(question: str, *, think: bool) -> None:
    """Ask once and write every piece at once; leaving the block early closes the connection to the provider."""
    request = LLMRequest(
        messages=(Message.user(question),), profile="balanced", thinking=True if think else None
    )
    with provider() as settings:
        async with build_llm_service(settings) as llm:
            with llm.scope(workspace_id="examples", stage="terminal"):
                async with llm.stream(request) as stream:
                    thinks = False
                    async for item in stream:
                        if isinstance(item, ThinkingDelta):
                            write(item.text if thinks else f"(thinks: {item.text}")
                            thinks = True
                        elif isinstance(item, TextDelta):
                            write(f")\n{item.text}" if thinks else item.text)
                            thinks = False
                        elif isinstance(item, LLMResponse):
                            tell(item)


def write(text: str) -> None:
    """Write a piece, now."""
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(response: LLMResponse) -> None:
    """Write what it took and who was considered."""
    used = response.usage
    cost = "cost unknown" if response.cost_usd is None else f"{response.cost_usd:.4f} USD"
    print(f"\n\n{response.served_from}, {used.input_tokens} + {used.output_tokens} tokens, {cost}")
    for candidate in response.route:
        chosen = "kept" if candidate["kept"] else "excluded"
        print(f"{candidate['provider']}:{candidate['model']}: {chosen}, {candidate['reason']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", nargs="*", default=["What", "does", "a", "signal", "box", "do?"])
    parser.add_argument("--think", action="store_true", help="ask for thoughts, of a model that has them")
    options = parser.parse_args()
    try:
        run(main(" ".join(options.question), think=options.think))
    except KeyboardInterrupt:
        print("\nstopped; the ledger keeps what had arrived: signalbox runs list --status cancelled")
        sys.exit(INTERRUPTED)
