"""The driver's green contexts on a machine without a GPU: it keeps books of what is open, in place of contexts."""

from types import SimpleNamespace


class Code(int):
    """A result code with a name, as cuda.bindings' enum."""

    name = property(lambda self: {0: "CUDA_SUCCESS", 2: "CUDA_ERROR_OUT_OF_MEMORY"}.get(self, "CUDA_ERROR_UNKNOWN"))


def sms_of(ids, **fields):
    return SimpleNamespace(ids=frozenset(ids), sm=SimpleNamespace(smCount=len(ids), **fields))


class FakeDriver:
    """The calls of cuda.bindings.driver that a split needs. Handles are numbers; `open` holds what is not destroyed."""

    CUdevResourceType = SimpleNamespace(CU_DEV_RESOURCE_TYPE_SM=1)
    CUgreenCtxCreate_flags = SimpleNamespace(CU_GREEN_CTX_DEFAULT_STREAM=1)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)

    def __init__(self, sms=132, version=13000, fail=None, **fields):
        self.sms, self.version, self.fail, self.fields = sms, version, fail, fields
        self.open: dict[int, object] = {}  # context → SM ids, stream → context
        self.log: list[str] = []
        self._number = 0

    def _call(self, name: str, *found):
        self.log.append(name)
        return (Code(2),) if self.log.count(name) == (self.fail or {}).get(name) else (Code(0), *found)

    def _made(self, name: str, what):
        answer = self._call(name, self._number + 1)
        if not answer[0]:
            self._number += 1
            self.open[self._number] = what
        return answer

    def cuInit(self, flags):
        return self._call("init")

    def cuDriverGetVersion(self):
        return self._call("version", self.version)

    def cuDeviceGet(self, index):
        return self._call("device", index)

    def cuDeviceGetDevResource(self, device, kind):
        return self._call("resource", sms_of(range(self.sms), **self.fields))

    def cuDevSmResourceSplitByCount(self, groups, whole, flags, count):
        assert (groups, flags) == (1, 0)
        ids = sorted(whole.ids)
        return self._call("split", [sms_of(ids[:count])], 1, sms_of(ids[count:]))

    def cuDevResourceGenerateDesc(self, resources, count):
        assert len(resources) == count == 1
        return self._call("describe", resources[0])

    def cuGreenCtxCreate(self, described, device, flags):
        assert flags == 1, "the driver refuses a context without its default stream"
        return self._made("context", described.ids)

    def cuGreenCtxStreamCreate(self, context, flags, priority):
        assert flags == 1 and context in self.open
        return self._made("stream", context)

    def cuStreamSynchronize(self, stream):
        assert stream in self.open
        return self._call("wait")

    def cuStreamDestroy(self, stream):
        del self.open[stream]
        return self._call("stream ends")

    def cuGreenCtxDestroy(self, context):
        assert context not in self.open.values(), "a stream of it is still there"
        del self.open[context]
        return self._call("context ends")
