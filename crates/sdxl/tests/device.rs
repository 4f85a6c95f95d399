//! A device that the library does not know: one that counts, and computes as the CPU does. It is
//! written here and nowhere else, so that this is what adding a device takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use sdxl::device::StoredWeights;
use sdxl::device::{
    Activation, Conv, ConvGeometry, Cpu, Device, HostValues, Layer, Meta, Norm, PackedWeights,
    Storage,
};
use sdxl::model::unet::UNet;
use sdxl::tensor::{DType, Tensor};
use sdxl::weights::Loader;
use sdxl::{Checkpoint, Part, Precision, Result};
use sdxl_testing::golden;

/// The CPU, and how often each of its operators was called.
#[derive(Debug, Default)]
struct Counting {
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl Counting {
    fn count(&self, call: &'static str) {
        *self.calls.lock().unwrap().entry(call).or_default() += 1;
    }

    fn take(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl Device for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn pack(&self, layer: Layer, weights: &dyn StoredWeights) -> Result<PackedWeights> {
        self.count("pack");
        Cpu.pack(layer, weights)
    }

    fn upload(&self, values: HostValues) -> Storage {
        self.count("upload");
        Cpu.upload(values)
    }

    fn download(&self, x: &Tensor) -> Vec<f32> {
        self.count("download");
        Cpu.download(x)
    }

    fn cast(&self, x: &Tensor, dtype: DType) -> Storage {
        self.count("cast");
        Cpu.cast(x, dtype)
    }

    fn narrow(&self, x: &Tensor, values: Range<usize>) -> Storage {
        self.count("narrow");
        Cpu.narrow(x, values)
    }

    fn cat(&self, parts: &[Tensor]) -> Storage {
        self.count("cat");
        Cpu.cat(parts)
    }

    fn linear(
        &self,
        x: &Tensor,
        weight: &PackedWeights,
        bias: Option<&[f32]>,
        act: Activation,
        residual: Option<&Tensor>,
    ) -> Storage {
        self.count("linear");
        Cpu.linear(x, weight, bias, act, residual)
    }

    fn geglu(&self, x: &Tensor, weight: &PackedWeights, bias: Option<&[f32]>) -> Storage {
        self.count("geglu");
        Cpu.geglu(x, weight, bias)
    }

    fn conv2d(&self, x: &Tensor, conv: &Conv<'_>) -> Storage {
        self.count("conv2d");
        Cpu.conv2d(x, conv)
    }

    fn can_fuse_norm(&self, dtype: DType, weight: &PackedWeights, geometry: &ConvGeometry) -> bool {
        Cpu.can_fuse_norm(dtype, weight, geometry)
    }

    fn norm_factors(&self, x: &Tensor, norm: &Norm, silu: bool) -> Storage {
        self.count("group_norm");
        Cpu.norm_factors(x, norm, silu)
    }

    fn group_norm(&self, x: &Tensor, norm: &Norm, silu: bool) -> Storage {
        self.count("group_norm");
        Cpu.group_norm(x, norm, silu)
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm) -> Storage {
        self.count("layer_norm");
        Cpu.layer_norm(x, norm)
    }

    fn enlarge(&self, x: &Tensor, height: usize, width: usize) -> Storage {
        self.count("enlarge");
        Cpu.enlarge(x, height, width)
    }

    fn self_attention(
        &self,
        qkv: &Tensor,
        heads: usize,
        causal: bool,
        seen: Option<&[bool]>,
    ) -> Storage {
        self.count("self_attention");
        Cpu.self_attention(qkv, heads, causal, seen)
    }

    fn cross_attention(&self, q: &Tensor, texts: &[&Tensor], heads: usize) -> Storage {
        self.count("cross_attention");
        Cpu.cross_attention(q, texts, heads)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Storage {
        self.count("add");
        Cpu.add(a, b)
    }

    fn silu(&self, x: &Tensor) -> Storage {
        self.count("silu");
        Cpu.silu(x)
    }

    fn cat_channels(&self, a: &Tensor, b: &Tensor) -> Storage {
        self.count("cat_channels");
        Cpu.cat_channels(a, b)
    }
}

/// Values that are all different and neither large nor small.
fn values(shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let values = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
    Tensor::from_f32(shape, values)
}

fn load(checkpoint: &Checkpoint, precision: Precision, streamed: bool) -> UNet {
    let tensors = checkpoint.tensors(Part::UNet).unwrap();
    let loader = Loader::new(&tensors, precision).streamed(streamed);
    let path = checkpoint.config_path(Part::UNet);
    UNet::load(&checkpoint.unet, &path, &loader).unwrap()
}

/// One evaluation of two rows at an odd size, where enlarging is an operator of its own.
fn evaluate(unet: &UNet) -> Tensor {
    let config = unet.config();
    let keys = Arc::new(
        unet.text_keys(&values(&[77, config.cross_attention_dim]))
            .unwrap(),
    );
    let added = values(&[2, config.projection_class_embeddings_input_dim]);
    let x = values(&[2, 9, 7, config.in_channels]);
    let ids = Tensor::from_f32([2, 0], Vec::new());
    let texts = [keys.clone(), keys];
    unet.forward_with(&x, &[500.0, 500.0], &texts, &added, &ids)
        .unwrap()
}

#[test]
fn a_network_runs_on_a_device_of_another() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    for precision in [Precision::F32, Precision::Bf16] {
        let expected = evaluate(&load(&checkpoint, precision, false)).to_f32_vec();
        let device = Arc::new(Counting::default());
        let moved = checkpoint.on(device.clone());

        let unet = load(&moved, precision, false);
        let layers = device.take()["pack"];
        let out = evaluate(&unet);
        assert_eq!(out.device().name(), "counting");
        let calls = device.take();
        for operator in [
            "linear",
            "geglu",
            "conv2d",
            "group_norm",
            "layer_norm",
            "enlarge",
            "self_attention",
            "cross_attention",
            "add",
            "cat_channels",
            "upload",
        ] {
            assert!(calls.contains_key(operator), "{operator} in {calls:?}");
        }
        // Numbers go in; between the layers nothing comes back, and nothing is packed again.
        assert!(!calls.contains_key("download"), "{calls:?}");
        assert!(!calls.contains_key("pack"), "{calls:?}");
        assert_eq!(out.to_f32_vec(), expected, "{precision}");

        // Packed as they work.
        let unet = load(&moved, precision, true);
        assert!(!device.take().contains_key("pack"));
        assert_eq!(evaluate(&unet).to_f32_vec(), expected, "{precision}");
        assert!(device.take()["pack"] >= layers / 2, "{precision}");
    }
}

#[test]
fn layers_are_not_shared_between_devices() {
    let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
    let device = Arc::new(Counting::default());
    let moved = checkpoint.on(device.clone());
    let here = load(&checkpoint, Precision::F32, false);
    let there = load(&moved, Precision::F32, false);
    assert!(device.take()["pack"] > 0);
    // A second network finds the layers of the first.
    let again = load(&moved, Precision::F32, false);
    assert!(!device.take().contains_key("pack"));
    drop((here, there, again));
}

#[test]
fn tensors_are_moved_to_the_device_of_the_others() {
    let device = Arc::new(Counting::default());
    let there: Arc<dyn Device> = device.clone();
    let (a, b) = (values(&[3, 4]), values(&[3, 4]).to_device(&there));
    device.take();
    let sum = sdxl::ops::add(&a, &b);
    assert_eq!(sum.device().name(), "counting");
    assert_eq!(device.take(), BTreeMap::from([("add", 1), ("upload", 1)]));
    let expected = sdxl::ops::add(&a, &a);
    assert_eq!(expected.device().name(), "cpu");
    assert_eq!(sum.to_f32_vec(), expected.to_f32_vec());
    // Other sides too.
    let wide = sdxl::ops::cat_channels(&b, &a);
    assert_eq!(
        (wide.device().name(), wide.shape()),
        ("counting", &[3, 8][..])
    );
    assert_eq!(Tensor::cat_batch(&[&b, &a]).shape(), [6, 4]);
}

#[test]
fn meta_tensors_have_a_shape_and_bytes_and_no_values() {
    let meta = Arc::new(Meta::default());
    let x = meta.tensor(&[2, 5, 8], DType::F32);
    assert_eq!(meta.meter().now(), 2 * 5 * 8 * 4);
    let sum = sdxl::ops::add(&values(&[2, 5, 8]), &x);
    assert_eq!((sum.device().name(), sum.shape()), ("meta", &[2, 5, 8][..]));
    assert_eq!(meta.meter().now(), 2 * (2 * 5 * 8 * 4));
    let narrow = sum.to_dtype(DType::Bf16).narrow_batch(1, 1);
    assert_eq!(narrow.bytes(), 5 * 8 * 2);
    assert_eq!(narrow.to_f32_vec(), vec![0.0; 5 * 8]);
}
