"""Takes the pieces that formats read, in order, and gives out those that are certain.

Knows what blank lines are for: those between thoughts, text and calls are not meant for the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from pagoda.server.replies.pieces import Arguments, CallEnd, CallStart, Piece, Text, Thought, joined


@dataclass(frozen=True)
class Checkpoint:
    """How far an output had come."""

    num_pieces: int
    num_calls: int
    num_begun: int
    space: str
    last: type[Piece] | None


class Output:
    """Calls beyond `most_calls` are left out. With `is_whole` nobody sees a piece before the end.

    Ids of calls have `id_length` characters, where the template insists on that.
    """

    def __init__(
        self,
        id_prefix: str = "call_",
        id_length: int | None = None,
        most_calls: int | None = None,
        is_whole: bool = False,
    ) -> None:
        self.num_calls = 0  # whole ones
        self.num_begun = 0  # but for those that were taken back
        self.num_tried = 0
        self.has_thought = False
        self._id_prefix, self._id_length = id_prefix, id_length
        self._most_calls = most_calls
        self._is_whole = is_whole
        self._pieces: list[Piece] = []
        self._num_taken = 0
        self._held_from = 0 if is_whole else None
        self._space = ""
        self._last: type[Piece] | None = None
        self._before_call = self._checkpoint()

    def say(self, text: str) -> None:
        """Text for the reader. Blanks wait for what they stand between."""
        if self._last is not Text:
            text, self._space = self._space + text, ""
            if not text or text.isspace():
                self._space = text
                return
            if self._last is Thought:
                text = text.lstrip()
        if text:
            self._add(Text(text))

    def part(self) -> None:
        """What is said next is a text of its own."""
        if self._last is Text:
            self._add(Text("\n"))

    def think(self, text: str) -> None:
        """A thought, without the blanks around it."""
        if self._last is not Thought:
            text, self._space = text.lstrip(), ""
        text = self._space + text
        shown = text.rstrip()
        if shown:
            self._space = text[len(shown) :]
            self._add(Thought(shown))
            self.has_thought = True
        elif self._last is Thought:
            self._space = text

    def begin(self, name: str, call_id: str | None = None) -> None:
        """A call, whose arguments follow."""
        self._before_call = self._checkpoint()
        self.num_begun += 1
        self.num_tried += 1
        self._space = ""
        self._add_call(CallStart(name, call_id or self._new_id()))

    def argue(self, text: str) -> None:
        """More of the arguments."""
        if text:
            self._add_call(Arguments(text))

    def end(self, is_whole: bool = True) -> None:
        """The call ends. One that is not whole is as if it had not begun, unless somebody may have seen it."""
        is_hidden = self._held_from is not None and self._held_from <= self._before_call.num_pieces
        if is_hidden and not is_whole:
            self.rewind(self._before_call)
        else:
            self._add_call(CallEnd(is_whole))
            self.num_calls += is_whole and not self._is_beyond

    def hold(self) -> Checkpoint:
        """Show nobody what comes from here on."""
        if self._held_from is None:
            self._held_from = self._num_taken + len(self._pieces)
        return self._checkpoint()

    def release(self) -> None:
        """Show what was held."""
        self._held_from = 0 if self._is_whole else None

    def rewind(self, before: Checkpoint) -> None:
        """Take back what was held from there on."""
        del self._pieces[before.num_pieces - self._num_taken :]
        self.num_calls, self.num_begun = before.num_calls, before.num_begun
        self._space, self._last = before.space, before.last

    def finish(self) -> None:
        """There is nothing more; a reply of blanks alone is shown as it is."""
        if self._last is None and self._space and not self.num_tried:
            self._add(Text(self._space))
        self._held_from = None

    def take(self) -> list[Piece]:
        """What is certain and new."""
        held_from = self._num_taken + len(self._pieces) if self._held_from is None else self._held_from
        num_certain = held_from - self._num_taken
        if not num_certain:
            return []
        taken, self._pieces = self._pieces[:num_certain], self._pieces[num_certain:]
        self._num_taken += num_certain
        return joined(taken)

    def _checkpoint(self) -> Checkpoint:
        num_pieces = self._num_taken + len(self._pieces)
        return Checkpoint(num_pieces, self.num_calls, self.num_begun, self._space, self._last)

    @property
    def _is_beyond(self) -> bool:
        return self._most_calls is not None and self.num_begun > self._most_calls

    def _add(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._last = type(piece)

    def _add_call(self, piece: Piece) -> None:
        if not self._is_beyond:
            self._pieces.append(piece)
        self._last = CallEnd

    def _new_id(self) -> str:
        name = uuid4().hex
        return self._id_prefix + name if self._id_length is None else name[: self._id_length]
