"""A program: the logits of a prompt's last token in llama.cpp, with a control vector loaded by llama.cpp's own loader.

    python llama_logits.py MODEL.gguf VECTOR.gguf|none STRENGTH FIRST LAST ID,ID,...   prints JSON

The package xllamacpp has no setting for control vectors, but its library exports the functions that `--control-vector`
ends in. They are called here by name, with the structures they take by value as opaque bytes. It is a program of its
own, so that a library in which they have changed can crash it and nothing else.
"""

from __future__ import annotations

import ctypes
import json
import sys

import xllamacpp.xllamacpp as library

_LOAD = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"


class Opaque(ctypes.Structure):
    """A structure passed by value, larger than any of llama.cpp's: a callee reads or writes its own part."""

    _fields_ = (("bytes", ctypes.c_uint64 * 256),)


class LoadInfo(ctypes.Structure):
    """common_control_vector_load_info: a float and a std::string, one pointer in the ABI of the Linux wheels."""

    _fields_ = (("strength", ctypes.c_float), ("name", ctypes.c_char_p))


class Vector(ctypes.Structure):
    """std::vector: three pointers."""

    _fields_ = (("first", ctypes.c_void_p), ("last", ctypes.c_void_p), ("room", ctypes.c_void_p))


class Loaded(ctypes.Structure):
    """common_control_vector_data."""

    _fields_ = (("n_embd", ctypes.c_int32), ("data", Vector), ("spare", ctypes.c_uint64 * 64))


def load(llama: ctypes.CDLL, path: str, strength: float) -> Loaded:
    """llama.cpp's loader of control-vector files."""
    info = LoadInfo(strength, path.encode())
    start = ctypes.addressof(info)
    infos = Vector(start, start + ctypes.sizeof(info), start + ctypes.sizeof(info))
    loader = getattr(llama, _LOAD)
    loader.argtypes, loader.restype = [ctypes.c_void_p, ctypes.c_void_p], None  # the result's place comes first
    loaded = Loaded()
    loader(ctypes.byref(loaded), ctypes.byref(infos))
    return loaded


def main(model_path: str, vector: str, strength: str, first: str, last: str, ids: str) -> None:
    """Print {"n_embd": width of the vector or -1 if it was refused, "logits": [...]}."""
    llama = ctypes.CDLL(library.__file__)
    llama.llama_model_default_params.restype = llama.llama_context_default_params.restype = Opaque
    llama.llama_batch_get_one.restype = Opaque
    llama.llama_batch_get_one.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    llama.llama_model_load_from_file.restype = llama.llama_init_from_model.restype = ctypes.c_void_p
    llama.llama_model_load_from_file.argtypes = [ctypes.c_char_p, Opaque]
    llama.llama_init_from_model.argtypes = [ctypes.c_void_p, Opaque]
    llama.llama_decode.argtypes = [ctypes.c_void_p, Opaque]
    llama.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    llama.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    llama.llama_model_get_vocab.restype = ctypes.c_void_p
    llama.llama_model_get_vocab.argtypes = llama.llama_vocab_n_tokens.argtypes = [ctypes.c_void_p]
    llama.llama_set_adapter_cvec.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int32] * 3]

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(model_path.encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, llama.llama_context_default_params())
    n_embd = 0
    if vector != "none":
        loaded = load(llama, vector, float(strength))
        n_embd = loaded.n_embd
        if n_embd > 0:
            count = (loaded.data.last - loaded.data.first) // 4
            failed = llama.llama_set_adapter_cvec(context, loaded.data.first, count, n_embd, int(first), int(last))
            assert failed == 0
    numbers = [int(token) for token in ids.split(",")]
    tokens = (ctypes.c_int32 * len(numbers))(*numbers)  # the batch keeps its address
    batch = llama.llama_batch_get_one(tokens, len(numbers))
    assert llama.llama_decode(context, batch) == 0
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = llama.llama_get_logits_ith(context, -1)
    print(json.dumps({"n_embd": n_embd, "logits": [logits[i] for i in range(size)]}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
