"""A wrong program passes by nothing that it does; a right one passes, whatever it is asked."""

import pytest

from support.judging import verdicts

TESTS = "assert f(2) == 4\nassert f(3) == 9"
RIGHT = "def f(x): return x * x"
SAY = """
import glob, os, struct
def say(*texts):
    for descriptor in range(64):
        for text in texts:
            try: os.write(descriptor, text)
            except OSError: pass
def message(text): return struct.pack("=Q", len(text)) + text
"""
# {what it does: (program, tests)}; each is a wrong program, and most know this judge
WRONG = {
    "frames": (
        "import sys\n"
        "def f(x):\n"
        "    frame, found = sys._getframe(), []\n"
        "    while frame:\n"
        "        found += [*frame.f_code.co_consts, *frame.f_locals.values()]\n"
        "        frame = frame.f_back\n"
        "    return next(v for v in found if v in (4, 9) and v != x)",
        TESTS,
    ),
    "the heap": (
        SAY + "import gc, types\n"
        "def f(x):\n"
        "    for each in gc.get_objects():\n"
        "        for name, value in list(getattr(each, '__dict__', {}).items()):\n"
        "            if isinstance(value, bytes): say(value)\n"
        "        if isinstance(each, types.CodeType) and 'assert' in str(each.co_consts):\n"
        "            return 4\n"
        "    return [v for v in gc.get_objects() if type(v) is dict and v.get('tests')][0]",
        TESTS,
    ),
    "what the judge would say": (
        SAY + "say(b'passed', b'[]\\npassed')\nf = lambda x: os._exit(0)",
        TESTS,
    ),
    "answers before questions": (
        SAY + "say(*[message(b'[\"value\", %d, []]' % v) for v in (0, 0, 4, 9, 1)] * 9)\n"
        "def f(x): return 0",
        TESTS,
    ),
    "the pipe's other ends": (
        SAY + "for path in glob.glob('/proc/[0-9]*/fd/*') + glob.glob('/dev/fd/*'):\n"
        "    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):\n"
        "        try: os.write(os.open(path, flags), b'passed')\n"
        "        except OSError: pass\n"
        "f = lambda x: 0",
        TESTS,
    ),
    "others' memory": (
        "import ctypes, glob, os, re\n"
        "def content():\n"
        "    for path in glob.glob('/proc/[0-9]*/mem'):\n"
        "        try:\n"
        "            maps = open(path[:-3] + 'maps').read().splitlines()\n"
        "            memory = open(path, 'rb', 0)\n"
        "        except OSError: continue\n"
        "        for line in maps:\n"
        "            start, end = (int(v, 16) for v in line.split()[0].split('-'))\n"
        "            try: yield os.pread(memory.fileno(), min(end - start, 2**24), start)\n"
        "            except (OSError, OverflowError): pass\n"
        "def f(x):\n"
        "    libc = ctypes.CDLL(None)\n"
        "    assert libc.ptrace(16, os.getppid(), 0, 0) == 0 or any(\n"
        "        re.search(rb'assert f\\(3\\)', each) for each in content())\n"
        "    return x * x",
        TESTS,
    ),
    "the job's file": (
        "import os\n"
        "def f(x):\n"
        "    os.lseek(0, 0, 0)\n"
        "    assert b'assert f(2)' in os.read(0, 10**5)\n"
        "    return x * x",
        TESTS,
    ),
    "traces": (
        "import sys, threading\n"
        "def jump(frame, *more):\n"
        "    try: frame.f_lineno += 1\n"
        "    except ValueError: pass\n"
        "    return jump\n"
        "sys.settrace(jump); sys.setprofile(jump); threading.settrace(jump)\n"
        "f = lambda x: 0",
        TESTS,
    ),
    "the end": (
        SAY + "import atexit, sys\n"
        "class End:\n"
        "    def __del__(self): say(b'passed')\n"
        "kept = End()\n"
        "atexit.register(say, b'passed')\n"
        "sys.excepthook = lambda *_: os._exit(0)\n"
        "def f(x):\n"
        "    global kept\n"
        "    del kept\n"
        "    raise KeyboardInterrupt",
        TESTS,
    ),
    "a death that tests would survive": (
        "import os\nf = lambda x: os._exit(0)",
        "try:\n    f(2)\nexcept BaseException:\n    pass",
    ),
    "this package's own functions": (
        "import json, operator, os\n"
        "from ptl_fast.evaluation import judge, linked_processes, plain_values, sandbox_child\n"
        "judge.judge = lambda *_, **__: None\n"
        "plain_values.compares_itself = lambda kind: False\n"
        "plain_values.Table.decode = lambda *_: None\n"
        "linked_processes.Link._value = lambda *_: 4\n"
        "operator.eq = lambda *_: True\n"
        "json.loads = json.dumps = lambda *_: 'passed'\n"
        "f = lambda x: 0",
        TESTS,
    ),
    "what equals everything": (
        "class Yes(int):\n"
        "    __eq__ = __ge__ = __le__ = __contains__ = lambda *_: True\n"
        "    __ne__ = __gt__ = __lt__ = lambda *_: False\n"
        "    __hash__ = lambda self: 4\n"
        "    __sub__ = __rsub__ = lambda *_: 0\n"
        "    __class__ = int\n"
        "f = Yes",
        "assert f(2) == 4",
    ),
    "a difference of nothing": (
        "class Near:\n"
        "    __sub__ = __rsub__ = __truediv__ = __abs__ = lambda *_: 0.0\n"
        "f = lambda x: Near()",
        "assert abs(f(2) - 4) < 1e-6",
    ),
    "two answers to one comparison": (
        "from itertools import cycle\n"
        "from ptl_fast.evaluation import plain_values\n"
        "answers = cycle([1e9, -1e9])\n"
        "plain_values.BASES[float] = lambda value: next(answers)\n"
        "class Both(float): pass\n"
        "f = lambda x: Both()",
        "assert 3.9 < f(2) < 4.1",
    ),
    "two lists in one comparison": (
        "from itertools import cycle\n"
        "from ptl_fast.evaluation import plain_values\n"
        "answers = cycle([[9], [0]])\n"
        "plain_values.BASES[list] = lambda value: next(answers)\n"
        "class Both(list): pass\n"
        "f = lambda x: Both()",
        "assert [3] < f(2) < [5]",
    ),
    "unittest's comparisons": (
        "import unittest\n"
        "class TestCase:\n"
        "    def __init__(self, name): pass\n"
        "    def assertEqual(self, *values): pass\n"
        "unittest.TestCase = TestCase\n"
        "f = lambda x: 0",
        "import unittest\n"
        "class Tests(unittest.TestCase):\n"
        "    def test(self): self.assertEqual(f(2), 4)\n"
        "Tests('test').test()",
    ),
    "mock": ("from unittest.mock import ANY\nf = lambda x: ANY", TESTS),
    "Python's names": (
        "class math:\n    isclose = lambda *_: True\n"
        "def set(x): return 0\n"
        "abs = all = any = sorted = len = set\n"
        "f = lambda x: 0.0",
        "assert set([f(3)]) == set([9])\nassert math.isclose(f(2), 4)",
    ),
    "the judge asked in turn": (
        "import gc\n"
        "from ptl_fast.evaluation.linked_processes import Link\n"
        "link = next(each for each in gc.get_objects() if type(each) is Link)\n"
        "def f(x, own=None):\n"
        "    for operation, given in (('call', (own, 4)), ('run', ('f = int',))):\n"
        "        try: link.ask(operation, *given)\n"
        "        except Exception: pass\n"
        "    return link.table.decode(['yours', 0]) if link.table.objects else own",
        "assert f(2, lambda x: x + 1) == 4",
    ),
    "a message without end": (
        SAY + "f = lambda x: say(struct.pack('=Q', 2**62), b'[' * 10**5)",
        TESTS,
    ),
    "numbers of the judge's objects": (
        SAY + 'say(message(b\'["value", ["yours", 0], []]\'))\nf = lambda x: 0',
        TESTS,
    ),
    "an end of the tests' own loop": (
        "def f(x): raise StopIteration",
        "assert all(map(lambda case: f(case[0]) == case[1], [(2, 4), (3, 9)]))",
    ),
    "an address in the judge": (
        "class Numbers:\n"
        "    def __init__(self):\n"
        "        self.__array_interface__ = {'shape': (1,), 'typestr': '<i8', 'version': 3,\n"
        "                                    'data': (id(4) + 24, True)}\n"
        "def f(x): return Numbers()",
        "import numpy as np\nassert np.asarray(f(2)).dtype == np.int64",
    ),
}
POINT = """
class Point:
    def __init__(self, x, y=0): self.x, self.y = x, y
    def __eq__(self, other): return isinstance(other, Point) and self.x == other.x
    def __hash__(self): return hash(self.x)
    def __add__(self, other): return Point(self.x + other.x)
    def __mul__(self, by): return Point(self.x * by)
    def __lt__(self, other): return self.x < other.x
    def __len__(self): return 7
    def __iter__(self): return iter((self.x, self.y))
    def __getitem__(self, at): return (self.x, self.y)[at]
class Wrong(ValueError): pass
def f(x):
    if x < 0: raise Wrong('negative', x)
    return Point(x)
"""
ASKED = """
import math
from collections import Counter, namedtuple
assert f(2) == Point(2) and f(2) != Point(3) and f(2) != 2 and f(2) is not None
assert [f(1), (f(2),)] == [Point(1), (Point(2),)] and {f(1)} == {Point(1)}
assert (f(1) + f(2)).x == 3 and (f(2) * 3).x == 6
assert max(f(1), f(3), f(2)).x == 3 and sorted([f(2), f(1)])[0].x == 1
assert len(f(0)) == 7 and list(f(4)) == [4, 0] and f(4)[0] == 4 and 4 in f(4)
assert isinstance(f(1), Point) and not isinstance(3, Point)
point = f(1)
point.y = Point(5)
assert point.y.x == 5 and [each for each in point][1] == Point(5)
try:
    f(-1)
    assert False
except Wrong as error:
    assert error.args == ('negative', -1) and isinstance(error, ValueError)
"""
# {what it is: (program, tests)}
RIGHT_ONES = {
    "an own class": (POINT, ASKED),
    "values of many types": (
        "import array, collections, datetime, decimal, fractions, math\n"
        "Pair = collections.namedtuple('Pair', 'a b')\n"
        "class Numbers(list): pass\n"
        "def same(x): return x\n"
        "def make(): return [decimal.Decimal('1.5'), fractions.Fraction(1, 3), Pair(1, 2),\n"
        "    collections.Counter('aab'), collections.deque([1]), 2**200, float('inf'), 1j,\n"
        "    b'\\xff', datetime.date(2024, 2, 29), Numbers([1, 2]), range(3), {1: {2}}, ...,\n"
        "    frozenset('a'), array.array('i', [1]), collections.OrderedDict(a=1),\n"
        "    collections.defaultdict(int, a=1)]",
        "import array, collections, datetime, decimal, fractions, math, random\n"
        "made = make()\n"
        "assert made == [decimal.Decimal('1.5'), fractions.Fraction(1, 3), (1, 2),\n"
        "    {'a': 2, 'b': 1}, collections.deque([1]), 2**200, math.inf, 1j, b'\\xff',\n"
        "    datetime.date(2024, 2, 29), [1, 2], range(3), {1: {2}}, ..., frozenset('a'),\n"
        "    array.array('i', [1]), {'a': 1}, {'a': 1}]\n"
        "assert isinstance(made[2], tuple) and made[2].b == 2 and made[2] + (3,) == (1, 2, 3)\n"
        "assert same(int) is int and same(made[2]) == (1, 2) and hash(made[2]) == hash((1, 2))\n"
        "assert math.isnan(same(math.nan)) and same('\\ud83d') == '\\ud83d'\n"
        "assert math.isclose(same(0.1) + 0.2, 0.3) and abs(same(0.5) - 0.5) < 1e-9",
    ),
    "NumPy": (
        "import numpy as np\ndef f(x): return np.cumsum(x)",
        "assert f([1, 2])[1] == 3 and (f([1, 2]) == np.array([1, 3])).all()\n"
        "assert np.allclose(f([0.5]), [0.5]) and f([1]).tolist() == [1]",
    ),
    "containers changed in place": (
        "def sort(x): x.sort()\ndef add(x, y): x[len(x)] = y",
        "x, y = [3, 1], {}\nsort(x)\nadd(x=y, y=x)\nassert x == [1, 3]\nassert y == {0: [1, 3]}",
    ),
    "functions, iterators and loops": (
        "def each(function, values): return (function(v) for v in values)\n"
        "class Sum:\n"
        "    def __init__(self): self.sum = 0\n"
        "    def __call__(self, x): self.sum += x; return self.sum\n"
        "calls = 0\n"
        "def count():\n    global calls\n    calls += 1",
        "def check(candidate):\n"
        "    total = Sum()\n"
        "    assert list(candidate(lambda x: x + 1, iter([1, 2]))) == [2, 3]\n"
        "    assert [total(i) for i in range(9)][-1] == 36\n"
        "    assert sum(each(len, ['a', 'bc'])) == 3\n"
        "check(each)\ncount()\ncount()\nassert calls == 2",
    ),
    "a name of Python's": ("def sum(a, b): return a - b", "assert sum(10, 15) == -5"),
    "nodes of the tests' making": (
        "def depth(node):\n"
        "    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))",
        "class Node:\n    def __init__(self): self.left = self.right = None\n"
        "root = Node()\nroot.left = Node()\nassert depth(root) == 2",
    ),
    "names of two underscores, and seeds": (
        "import random\ndef __f(): return random.random()",
        "random.seed(1)\nfirst = __f()\nrandom.seed(1)\nassert __f() == first",
    ),
    "one object, and parts of a text": (
        "import enum\n"
        "class Kind(enum.Enum): A = 1\n"
        "class Text(str): pass\n"
        "class Numbers(list): pass\n"
        "def f(x): return Kind.A\n"
        "numbers = Numbers([1])",
        "assert f(1) is Kind.A and f(1) is not Kind\nassert 'bc' in Text('abc')\n"
        "assert numbers == [1]\nnumbers.append(2)\nassert numbers == [1, 2] and 2 in numbers",
    ),
    "copies": (
        "class Box:\n    def __init__(self): self.content = [1]",
        "import copy\nbox = Box()\ncopies = copy.copy(box), copy.deepcopy([box])[0]\n"
        "box.content = [2]\nassert [each.content for each in copies] == [[1], [1]]",
    ),
    "what contains itself": (
        "def f():\n    own = [1]\n    own.append(own)\n    return own",
        "assert f()[0] == 1 and f()[1][1][0] == 1",
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """Verdicts of all of them."""
    cases = {**WRONG, **RIGHT_ONES, "right": (RIGHT, TESTS)}
    folder = tmp_path_factory.mktemp("jobs")
    return dict(zip(cases, verdicts(list(cases.values()), folder), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_does_not_pass(name: str, found: dict[str, bool]) -> None:
    assert found["right"], "the check can fail"
    assert not found[name]


@pytest.mark.parametrize("name", RIGHT_ONES)
def test_a_right_program_passes(name: str, found: dict[str, bool]) -> None:
    assert found[name]
