"""Our header of ONNX Runtime's C ABI against a real onnxruntime_c_api.h, where this machine has one: slots, fields, signatures, constants.

No Python package ships that header. It is looked for where Debian's libonnxruntime-dev puts it and in the folder LM2_ORT_INCLUDE.
"""

import os
import subprocess
from pathlib import Path

import pytest
from op_kit import OPS, compiler

CHECK = r"""
#include <stddef.h>
#include "onnxruntime_c_api.h"
#define LM2_ORT_NAMES_ONLY
#include "ort_abi.h"
#define SAME(a, b) __builtin_types_compatible_p(a, b)
#define CALL(result, slot, name, arguments) \
    _Static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void *), "slot of " #name); \
    _Static_assert(SAME(__typeof__(((OrtApi *)0)->name), result(ORT_API_CALL *) arguments), "signature of " #name);
#define FUNCTION(slot, name, arguments) CALL(OrtStatus *, slot, name, arguments)
#define RELEASE(slot, name, arguments) CALL(void, slot, name, arguments)
LM2_ORT_FUNCTIONS(FUNCTION)
LM2_ORT_RELEASES(RELEASE)
#define NUMBER(result, name, arguments) Number_##name,
enum { LM2_ORT_OP_FIELDS(NUMBER) FIELDS };
#define FIELD(result, name, arguments) \
    _Static_assert(offsetof(struct OrtCustomOp, name) == (Number_##name + 1) * sizeof(void *), "place of " #name); \
    _Static_assert(SAME(__typeof__(((struct OrtCustomOp *)0)->name), result(ORT_API_CALL *) arguments), "signature of " #name);
LM2_ORT_OP_FIELDS(FIELD)
#define CONSTANT(number, name) _Static_assert((int)name == number, "value of " #name);
LM2_ORT_CONSTANTS(CONSTANT)
_Static_assert(offsetof(struct OrtApiBase, GetApi) == 0 && offsetof(struct OrtApiBase, GetVersionString) == sizeof(void *), "OrtApiBase");
_Static_assert(sizeof(ONNXTensorElementDataType) == sizeof(int) && sizeof(OrtMemType) == sizeof(int), "enumerations");
_Static_assert(ORT_API_VERSION >= LM2_ORT_API_VERSION, "version");
"""
FOLDERS = (
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
    "/usr/include",
    "/usr/local/include",
    "/opt/homebrew/include/onnxruntime",
)


def real_header():
    named = os.environ.get("LM2_ORT_INCLUDE")
    for folder in filter(None, (named, *FOLDERS)):
        found = next(iter(sorted(Path(folder).glob("**/onnxruntime_c_api.h"))), None) if "onnx" in folder or folder == named else None
        found = found or (Path(folder) / "onnxruntime_c_api.h")
        if found.is_file():
            return found.parent
    pytest.skip("no onnxruntime_c_api.h on this machine (Debian: libonnxruntime-dev; or name its folder in LM2_ORT_INCLUDE)")


def compiled(folder, ours):
    source = folder / "check.c"
    source.write_text(CHECK, encoding="utf-8")
    words = [compiler(), "-std=gnu11", "-fsyntax-only", f"-I{real_header()}", f"-I{ours}", str(source)]
    return subprocess.run(words, capture_output=True, text=True)


def test_slots_fields_signatures_and_constants_are_the_real_ones(tmp_path):
    done = compiled(tmp_path, OPS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("X(91, KernelContext_GetOutput", "X(92, KernelContext_GetOutput", "slot of KernelContext_GetOutput"),
        ("size_t rank, OrtValue **out", "int rank, OrtValue **out", "signature of KernelContext_GetOutput"),
        ("X(const char *, GetName, (const struct OrtCustomOp *op)) \\\n", "", "place of GetExecutionProviderType"),
        ("X(9, ORT_NOT_IMPLEMENTED)", "X(8, ORT_NOT_IMPLEMENTED)", "value of ORT_NOT_IMPLEMENTED"),
    ],
)
def test_the_check_sees_a_difference(tmp_path, old, new, said):
    """Negative controls."""
    real_header()
    text = (OPS / "ort_abi.h").read_text(encoding="utf-8")
    assert old in text
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "ort_abi.h").write_text(text.replace(old, new), encoding="utf-8")
    done = compiled(tmp_path, ours)
    assert done.returncode != 0 and said in done.stderr
