"""Profiles of an exported file: classes of operators, tables by batch size, and what happens without a GPU."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper

from dxc.errors import ConfigError, HardwareError
from dxc.hardware.measure.ort import node_times, session
from dxc.hardware.profiling import torch_profile as module
from dxc.hardware.profiling.cupti import reduce_events
from dxc.hardware.profiling.tables import gpu_rows, operator_class, share_rows
from dxc.hardware.profiling.torch_profile import profile_network
from tests.hardware.networks import exported_resnet, one_operator


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return exported_resnet(tmp_path / "model.onnx", pool="max")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        # cuDNN, cuBLAS, CUTLASS and torch kernels
        ("void cudnn::cnn::implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false>", "conv"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_stage4", "conv"),
        ("void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>", "conv"),
        ("ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1", "conv"),
        ("ampere_sgemm_128x64_tn", "matmul"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8", "matmul"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "matmul"),
        ("void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>", "matmul"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", "matmul"),
        ("void at::native::(anonymous namespace)::max_pool_forward_nhwc<float, int>", "pooling"),
        ("void at::native::(anonymous namespace)::adaptive_average_pool<float>", "pooling"),
        (
            "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps<float, float>>>",
            "pooling",
        ),
        ("void cudnn::cnn::im2col4d_kernel<float, int>", "conv"),
        ("void fft2d_r2c_32x32<float, false, 1u, true>", "conv"),
        ("cutlass_80_tensorop_s1688gemm_128x128_32x3_nn_align4", "matmul"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_64x64_16x10>", "conv"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::clamp_min>", "elementwise"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>", "other"),
        # torch's and ONNX Runtime's operators on a CPU
        ("aten::mkldnn_convolution", "conv"),
        ("aten::_slow_conv2d_forward", "conv"),
        ("aten::addmm", "matmul"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("aten::sum", "pooling"),  # of aten::mean, global pooling
        ("aten::clamp_min", "elementwise"),
        ("aten::add", "elementwise"),
        ("aten::native_batch_norm", "normalisation"),
        ("aten::_softmax", "softmax"),
        ("aten::cat", "other"),
        ("FusedConv", "conv"),
        ("FusedGemm", "matmul"),
        ("MatMul", "matmul"),
        ("GlobalAveragePool", "pooling"),
        ("ReduceMean", "pooling"),
        ("ReorderInput", "other"),
        ("Add", "elementwise"),
        ("LeakyRelu", "elementwise"),
        ("BatchNormalization", "normalisation"),
        ("Softmax", "softmax"),
        ("Shape", "other"),
    ],
)
def test_classes(name: str, kind: str) -> None:
    assert operator_class(name) == kind


HOPPER = {
    "conv": [
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroupsize1x1x1_g1"
        "_execute_segment_k_off_kernel__5x_cudnn",
        "sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize64x128x32_warpgroupsize1x1x1",
        "sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x16x32_stage1",
        "cutlass3x_sm100_tensorop_s256x256x16implicit_gemm_fprop_bf16",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688fprop_optimized_tf32_128x64_16x6_nhwc_align4>",
        "void conv2d_grouped_direct_kernel<float, float, float, float, float, true, false, 0, 0, 0>",
        "void cask__5x_cudnn::computeOffsetsKernel<false, false>(cask__5x_cudnn::ComputeOffsetsParams)",
        "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>",
        "triton_tem_fused_convolution_relu_0",
    ],
    "matmul": [
        "nvjet_tst_128x24_64x11_2x1_v_bz_TNT",
        "nvjet_sm90_hsh_64x8_64x16_4x1_v_bz_splitK_TNN",
        "sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x32_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x",
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_f16_s161616gemm_f16_32x32_128x2_tn_align8>",
        "void cutlass::Kernel2<cutlass_80_simt_sgemm_64x64_8x5_nn_align1>(T1::Params)",
        "void gemmSN_TN_kernel<float, 128, 16, 2, 4, 4, 4, true>",
        "void dot_kernel<float, 128, 0, cublasDotParams<cublasGemvTensorStridedBatched<float const>>>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, float, float, float, true, false, false>",
        "triton_tem_fused_addmm_1",
    ],
    "pooling": [
        "void at::native::(anonymous namespace)::max_pool_forward_nchw<float>(int, float const*, long, long)",
        "void at::native::(anonymous namespace)::adaptivemaxpool<float>",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t<float, "
        "at::native::MaxNanFunctor<float>>, unsigned int, float, 4, 4>>",
        "void cudnn::pooling_fw_4d_kernel<float, float, cudnn::maxpooling_func<float, 0>, 0, false>",
        "triton_poi_fused_max_pool2d_with_indices_relu_2",
    ],
    "elementwise": [
        "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native::"
        "CUDAFunctor_add<float>>>",
        "void at::native::unrolled_elementwise_kernel<at::native::sigmoid_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::launch_clamp_scalar>",
        "triton_poi_fused_convolution_relu_0",
    ],
    "normalisation": [
        "void cudnn::bn_fw_inf_1C11_kernel_NCHW<float, float, true, 1>",
        "void at::native::batch_norm_transform_input_kernel<float, float, float, true, int>",
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>",
    ],
    "softmax": ["void (anonymous namespace)::softmax_warp_forward<float, float, float, 1, false, false>"],
    "other": [
        "void cudnn::engines_precompiled::nchwToNhwcKernel<float, float, float, false, true, 0>",
        "void cudnn::engines_precompiled::nhwcToNchwKernel<float, float, float, true, false, 0>",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
        "direct_copy_kernel_cuda(at::TensorIteratorBase&)>>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<OpaqueType<4u>, unsigned, 2, 128>",
        "a kernel that nobody knows",
    ],
}
"""Names of kernels as published traces of H100 and A100 have them, cut after their first arguments."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in HOPPER.items() for name in names])
def test_kernels_of_a_recorded_list(kind: str, name: str) -> None:
    assert operator_class(name) == kind


def test_shares_by_hand() -> None:
    rows = share_rows("x", 4, {"Conv": 6.0, "FusedConv": 1.0, "Gemm": 2.0, "ReorderInput": 0.5, "Add": 0.5})
    shares = {(table, name): (ms, share) for _, _, table, name, ms, share in rows}
    assert shares == {
        ("operators", "conv"): (7.0, 0.7),
        ("operators", "matmul"): (2.0, 0.2),
        ("operators", "pooling"): (0.0, 0.0),
        ("operators", "elementwise"): (0.5, 0.05),
        ("operators", "other"): (0.5, 0.05),
        ("memory", "all"): (0.5, 0.05),
    }


def test_a_gpu_s_shares_by_hand() -> None:
    kernels = {"ampere_sgemm_128x64_tn": 2.0, "winograd": 5.0, "nchwToNhwcKernel": 1.0}
    rows = gpu_rows("x", 4, kernels, 2.0, {"cudaLaunchKernel": 1.0, "cudaMemcpyAsync": 3.0})
    assert {(table, name): (ms, share) for _, _, table, name, ms, share in rows} == {
        ("operators", "conv"): (5.0, 0.625),  # of 8 ms of kernels, without the copies
        ("operators", "matmul"): (2.0, 0.25),
        ("operators", "pooling"): (0.0, 0.0),
        ("operators", "other"): (1.0, 0.125),
        ("memory", "all"): (2.0, 0.2),  # beside 8 ms of kernels
        ("api", "cudaLaunchKernel"): (1.0, 0.25),
        ("api", "cudaMemcpyAsync"): (3.0, 0.75),
    }


def test_shares_of_nothing_are_missing() -> None:
    assert all(share != share for *_, share in share_rows("x", 1, {}))
    rows = gpu_rows("x", 1, {}, 0.0, {"cudaFree": 0.0})
    assert all(share != share for *_, share in rows)


def test_curves_by_hand() -> None:
    rows = [
        ("torch", 4, "operators", "conv", 6.0, 0.75),
        ("torch", 4, "memory", "all", 0.5, 0.0625),
        ("torch", 4, "latency", "batch", 10.0, float("nan")),
        ("nsight", 8, "api", "cudaFree", 1.0, 0.25),
    ]
    table = pd.DataFrame(rows, columns=module.COLUMNS)
    assert module.Profile("torch", "", (4, 8), table, ()).curves() == [
        ("profile/torch/share/conv", 0.75, 4),
        ("profile/torch/memory_ms", 0.5, 4),
        ("profile/torch/ms_per_image", 2.5, 4),
        ("profile/nsight/api/cudaFree", 0.25, 8),
    ]


@pytest.mark.parametrize(
    ("seconds", "batches"), [(None, [1, 2, 4]), (1.375, [1, 2, 4]), (1.3125, [1, 2]), (0.5, [1]), (0.0, [1])]
)
def test_batches_that_fit_the_time(
    seconds: float | None, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 1 takes 0.25 s, batch 2 0.375 s: batch 2 is expected to end at 0.75 s, batch 4 at 0.625 + 0.75 s."""
    clock = iter([0.0, 0.0, 0.25, 0.625, 9.0])
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert list(module._within(seconds, [4, 1, 2])) == batches


def test_every_run_carries_a_trace(network: Path, tmp_path: Path) -> None:
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    others = threads + 1  # of one profiled, to be put back
    profiled = profile_network(network, tmp_path / "out", threads=others, batches=[1, 2], budget_seconds=60)
    assert (profiled.mode, profiled.note, profiled.batches) == ("torch", "", (1, 2))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)
    table = pd.read_parquet(tmp_path / "out" / "profile.parquet")
    pd.testing.assert_frame_equal(table, profiled.table)
    for source in ("torch", "onnxruntime"):
        for batch in (1, 2):
            own = table[(table["source"] == source) & (table["batch"] == batch)]
            operators = own[own["table"] == "operators"].set_index("name")
            assert operators["share"].sum() == pytest.approx(1.0)
            assert (operators.loc[["conv", "matmul", "pooling", "other"], "ms"] > 0).all()
            # operators are part of the wall time of the execution
            assert operators["ms"].sum() < own[own["table"] == "latency"]["ms"].item() * 1.1 + 1.0
    trace = json.loads(gzip.decompress((tmp_path / "out" / "torch_batch2.json.gz").read_bytes()))
    assert any(event.get("name") == "batch 2" for event in trace["traceEvents"])
    own = table[(table["source"] == "torch") & (table["batch"] == 2) & (table["name"] == "conv")]
    assert own["ms"].item() == pytest.approx(_conv_ms(trace["traceEvents"]), rel=1e-3)
    assert {name for name, _, _ in profiled.curves()} >= {
        "profile/torch/share/conv",
        "profile/onnxruntime/share/matmul",
        "profile/torch/memory_ms",
        "profile/torch/ms_per_image",
    }
    latency = table[(table["source"] == "torch") & (table["table"] == "latency") & (table["batch"] == 2)][
        "ms"
    ].item()
    assert ("profile/torch/ms_per_image", latency / 2, 2) in profiled.curves()


def _conv_ms(events: list[dict]) -> float:
    """Time of convolutions in a chrome trace: their outermost events without the other calls in them (allocations)."""
    operators = [e for e in events if e.get("cat") == "cpu_op"]
    outer = [e for e in operators if e["name"] == "aten::conv2d"]
    assert len(outer) == 20
    called = [
        e
        for e in operators
        if "conv" not in e["name"]
        and any(c["ts"] <= e["ts"] and e["ts"] + e["dur"] <= c["ts"] + c["dur"] for c in outer)
    ]
    return (sum(e["dur"] for e in outer) - sum(e["dur"] for e in called)) / 1000


def test_onnxruntime_nodes_are_those_of_its_own_file(network: Path, tmp_path: Path) -> None:
    """The sums equal those of ONNX Runtime's events, which the test reads in another way."""
    import numpy as np

    profiled = session(str(network), 1, profile=str(tmp_path / "p"))
    image = np.zeros((1, 5, 32, 32), np.float32)
    for _ in range(3):
        profiled.run(None, {"image": image})
    trace = Path(profiled.end_profiling())
    nodes = node_times(trace, runs=3)
    total = sum(
        event["dur"] for event in json.loads(trace.read_text()) if str(event["name"]).endswith("_kernel_time")
    )
    assert sum(node.ms.sum() for node in nodes) == pytest.approx(total / 1000 + 3 * len(nodes) * 0.0005)
    assert sum(node.op == "Conv" for node in nodes) == 20


def test_the_automatic_trace_leaves_large_batches_out(network: Path, tmp_path: Path) -> None:
    profiled = profile_network(network, tmp_path / "out", budget_seconds=1e-9)
    assert profiled.batches == (1,)


def test_files_of_several_inputs_are_measured_not_profiled(tmp_path: Path) -> None:
    path = one_operator(tmp_path / "two.onnx", "Add", shape=["n", 3], weights={"y": [1, 3]})
    model = onnx.load(path)
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]))
    onnx.save(model, path)
    with pytest.raises(HardwareError, match="two.onnx has 2 inputs, and profiling feeds images to one"):
        profile_network(path, tmp_path / "p", mode="torch")


def test_none_and_unknown_modes(network: Path, tmp_path: Path) -> None:
    assert profile_network(network, tmp_path / "out", mode="none").files == ()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="profile=perf is unknown; choose one of auto, none, torch, nsight"):
        profile_network(network, tmp_path / "out", mode="perf")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_profile_without_a_gpu_is_refused(network: Path, tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no CUDA device here"):
        profile_network(network, tmp_path / "out", accelerator="gpu")


def test_without_nsys_torch_serves_and_says_so(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    profiled = profile_network(network, tmp_path / "out", mode="nsight", batches=[1])
    assert profiled.mode == "torch"
    assert "there is no nsys on the PATH" in profiled.note


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'ERR_NVGPUCTRPERM: no permission' >&2; exit 1", "(status 1: ERR_NVGPUCTRPERM: no permission)"),
        # as nsys 2022.4 does where its importer cannot start: a raw recording, status 0
        (
            'touch "$out.qdstrm"; printf "\\r[13%% ] x\\r[100%% ] x\\nGenerated:\\n    x.qdstrm\\n"; '
            "echo 'Importer error status: An unknown error occurred.' >&2",
            "Generated: / x.qdstrm / Importer error status: An unknown error occurred.)",
        ),
        ("exit 3", "(status 3: no message)"),
    ],
)
def test_an_nsys_that_fails_is_quoted(
    script: str, said: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nsys = tmp_path / "nsys"
    find = 'while [ $# -gt 0 ]; do [ "$1" = --output ] && out=$2; shift; done'
    nsys.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    nsys.chmod(nsys.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # only asked for before nsys is started
    profiled = profile_network(network, tmp_path / "out", mode="nsight", batches=[1])
    assert profiled.mode == "torch"
    assert "nsys profile made no nsight.nsys-rep" in profiled.note
    assert said in profiled.note
    assert "\n" not in profiled.note
    assert [path.name for path in profiled.files if path.name.startswith("nsight")] == []


def test_the_steps_on_a_gpu(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that claims to be a GPU: ten executions in ranges, in the time that auto gives a GPU.

    A kernel of 20 us is added to the trace, because a processor records none.
    """
    real, profile, limits = module.execute, torch.profiler.profile, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile(activities=cpu))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, _: self)
    monkeypatch.setattr(module, "execute", lambda network, image, device: real(network, image, "cpu"))
    within = module._within
    monkeypatch.setattr(
        module, "_within", lambda seconds, batches: (limits.append(seconds), within(seconds, batches))[1]
    )
    ranges: list[int] = []

    def reduce_trace(path: Path, batch: int) -> list[tuple]:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        ranges.append(sum(e["name"] == f"batch {batch}" for e in events if e.get("cat") == "user_annotation"))
        kernel = {"ph": "X", "cat": "kernel", "name": "fprop", "ts": 0.0, "dur": 20.0}
        return reduce_events([*events, kernel], batch)

    monkeypatch.setattr(module, "reduce_trace", reduce_trace)
    monkeypatch.setenv("PATH", str(tmp_path))  # without nsys
    profiled = profile_network(network, tmp_path / "out", mode="auto", accelerator="gpu", batches=[1, 2])
    assert (profiled.mode, profiled.note, limits, ranges) == ("torch", "", [20.0], [10, 10])
    conv = profiled.table[profiled.table["name"] == "conv"]
    assert conv["ms"].tolist() == pytest.approx([0.002, 0.002])
    assert set(profiled.table["source"]) == {"torch"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.gpu
def test_on_a_gpu(network: Path, tmp_path: Path) -> None:
    """The tables of torch.profiler, and those of Nsight Systems if it is installed."""
    profiled = profile_network(network, tmp_path / "torch", mode="torch", accelerator="gpu", batches=[1, 8])
    both = [profiled]
    if shutil.which("nsys"):
        both.append(
            profile_network(network, tmp_path / "nsight", mode="nsight", accelerator="gpu", batches=[1, 8])
        )
        assert (both[1].mode, both[1].note) == ("nsight", "")
        assert (tmp_path / "nsight" / "nsight.nsys-rep").stat().st_size > 0
    for each in both:
        for batch in (1, 8):
            own = each.table[each.table["batch"] == batch]
            assert own[own["table"] == "operators"]["share"].sum() == pytest.approx(1.0)
            assert own[(own["table"] == "operators") & (own["name"] == "conv")]["ms"].item() > 0
            assert own[own["table"] == "memory"]["ms"].item() > 0  # images there, scores back
            assert "cudaLaunchKernel" in set(own[own["table"] == "api"]["name"])
