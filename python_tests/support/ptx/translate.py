"""Translates PTX, as nvcc writes it, to C++: an instruction becomes a call of its namesake in meaning.h.

`add.s32 %r3, %r1, 5;` becomes `op_add<s32>(r3, r1, 5);`: types are template arguments, every register holds 64 bits, and
an instruction without a meaning fails to compile. Basic blocks count how often they are entered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

TYPE = re.compile(r"([usbf]\d+|bf16|pred|f16x2)$")
COUNTED = ("mma", "ldmatrix", "bar")  # beside all instructions, in the order of machine.h's Cost
TOUCHES = (
    "ld",
    "st",
    "atom",
    "red",
    "cp",
    "ldmatrix",
    "mbarrier",
)  # memory: take the thread and the number of their place
OF_THE_THREAD = ("cvta", "bar", "wgmma")  # take the thread
ENDS_BLOCK = ("bra", "ret", "exit")


class Kernel(NamedTuple):
    """A kernel of a PTX file."""

    name: str  # score_kernel<false, 2, 64>
    instructions: int
    source: str  # C++


def kernels(ptx: str) -> Iterator[Kernel]:
    """Every kernel of a PTX file, translated."""
    for entry in re.finditer(r"\.entry (\S+?)\(.*?\).*?\n\{\n(.*?)\n\}\n", ptx, flags=re.DOTALL):
        mangled, body = entry.groups()
        yield _Translation(body).kernel(readable(mangled))


def readable(mangled: str) -> str:
    """A kernel's name as C++ writes it."""
    found = re.search(r"\d([a-z_]+_kernel)(I(?:L[ib]\d+E)+)?", mangled)
    assert found, mangled
    constants = re.findall(r"L([ib])(\d+)E", found.group(2) or "")
    values = [value if kind == "i" else ("false", "true")[int(value)] for kind, value in constants]
    return found.group(1) + (f"<{', '.join(values)}>" if values else "")


class _Translation:
    """One kernel's body on its way to C++."""

    def __init__(self, body: str) -> None:
        self.registers: set[str] = set()
        self.lines: list[str] = []
        self.costs = [[0] * (1 + len(COUNTED))]
        self.places = 0  # of memory accesses
        self.unfenced: set[str] = set()  # registers written since the last wgmma.fence
        self.by_wgmma = "wgmma." in body  # what is written to shared memory must be shown to the tensor cores
        self._enter()
        for statement in _statements(body):
            if statement.endswith(":"):
                self.lines.append(f"{_label(statement[:-1])}:")
                self._enter()
            else:
                self._instruction(statement)

    def kernel(self, name: str) -> Kernel:
        registers = sorted(self.registers)
        declared = "".join(
            f"  Bits {', '.join(f'{r} = 0' for r in registers[i : i + 16])};\n"
            for i in range(0, len(registers), 16)
        )
        costs = ", ".join("{" + ", ".join(map(str, cost)) + "}" for cost in self.costs)
        source = (
            '#include "meaning.h"\nusing namespace ptx;\n'
            f"static const Cost costs[] = {{{costs}}};\n"
            f"static void body(Thread& t) {{\n{declared}" + "\n".join(self.lines) + "\n}\n"
            f"CPR_PTX_KERNEL(body, costs, {len(self.costs)}, {self.places}, {str(self.by_wgmma).lower()})\n"
        )
        return Kernel(name, sum(cost[0] for cost in self.costs), source)

    def _enter(self) -> None:
        """Begins a basic block."""
        self.costs.append([0] * (1 + len(COUNTED)))
        self.lines.append(f"  ++t.entered[{len(self.costs) - 1}];")

    def _instruction(self, statement: str) -> None:
        guard, opcode, rest = re.fullmatch(
            r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)", statement, flags=re.DOTALL
        ).groups()  # type: ignore[union-attr]
        head = opcode.partition(".")[0]
        cost = self.costs[-1]
        cost[0] += 1
        if head in COUNTED and opcode != "bar.warp.sync":
            cost[1 + COUNTED.index(head)] += 1
        columns = re.search(r"mma_async.*n(\d+)k16", opcode)
        if columns:  # a warp's 16 rows, in products of m16n8k16
            cost[1] += int(columns[1]) // 8
        operands = _operands(rest)
        call = self._call(head, opcode, operands)
        in_registers = (
            set(re.findall(r"%\w+", operands[1])) if columns and operands[1].startswith("{") else set()
        )
        if in_registers & self.unfenced:
            call = f'fault("a factor in registers is written after wgmma.fence"); {call}'
        elif opcode.startswith("wgmma.fence"):
            self.unfenced.clear()
        elif not columns and operands and not operands[0].startswith("["):
            self.unfenced.update(re.findall(r"%\w+", operands[0]))
        self.lines.append(f"  if ({self._value(guard)}) {{ {call} }}" if guard else f"  {call}")
        if head in ENDS_BLOCK:
            self._enter()

    def _call(self, head: str, opcode: str, operands: list[str]) -> str:
        if head in ("ret", "exit"):
            return "return;"
        if head == "bra":
            return f"goto {_label(operands[0])};"
        words = opcode.replace("::", "_").split(".")
        if head == "mov" and operands[0].startswith("{"):
            words[0], operands = "unpack", operands[::-1]
        elif head == "mov" and operands[1].startswith("{"):
            words[0] = "pack"
        elif head == "ld":
            operands = operands[::-1]  # the address, then as many registers as there are
        types = [word for word in words if TYPE.match(word)]
        name = "_".join(word for word in words if not TYPE.match(word) and not re.fullmatch(r"v\d", word))
        arguments = [value for operand in operands for value in self._values(operand)]
        if head in TOUCHES:
            arguments = ["t", str(self.places), *arguments]
            self.places += 1
        elif head in OF_THE_THREAD:
            arguments = ["t", *arguments]
        return f"op_{name}{'<' + ', '.join(types) + '>' if types else ''}({', '.join(arguments)});"

    def _values(self, operand: str) -> list[str]:
        if operand.startswith("{"):
            return [self._value(part) for part in _operands(operand[1:-1])]
        if operand.startswith("["):
            base, _, offset = operand[1:-1].replace(" ", "").partition("+")
            return [f"{self._value(base)} + Bits({offset or 0})"]
        return [self._value(operand.partition("|")[0])]  # a predicate beside a shuffle's result is not used

    def _value(self, operand: str) -> str:
        """A register, a constant, a special register, or the place of parameters or shared memory."""
        operand = operand.strip()
        if operand.startswith("!"):
            return f"!{self._value(operand[1:])}"
        if operand == "_":
            return "t.sink"
        if operand.startswith("%") and "." in operand:
            return f"special_{operand[1:].replace('.', '_')}()"
        if operand.startswith("%"):
            self.registers.add(f"{operand[1:]}_")  # %f32 is no type
            return f"{operand[1:]}_"
        if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", operand):
            return f"Bits(0x{operand[2:]}u)"
        if re.fullmatch(r"-?\d+U?", operand):
            return f"Bits({operand.rstrip('U')}ll)"
        if operand.endswith("_param_0"):
            return "t.parameters"
        assert operand.endswith("sharedE"), f"an operand without a translation: {operand}"
        return "Bits(0)"


def _statements(body: str) -> Iterator[str]:
    """Instructions and labels, without comments, directives and braces of scopes."""
    for line in re.sub(r"//.*", "", body).replace("%tmp", "%rdtmp").split("\n"):
        label = re.fullmatch(r"(\$\w+:)\s*", line)
        if label:
            yield label.group(1)
            continue
        for part in line.split(";"):
            statement = re.sub(r"^[{}\s]+(?=$|[.@a-z])", "", part.strip()).strip()
            if statement and statement != "}" and not statement.startswith("."):
                yield statement


def _label(name: str) -> str:
    return name.strip().replace("$", "L")


def _operands(text: str) -> list[str]:
    """Split at commas outside of braces and brackets."""
    return [part.strip() for part in re.split(r",(?![^{\[]*[}\]])", text) if part.strip()]
