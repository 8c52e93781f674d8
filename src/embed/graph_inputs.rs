//! Pixels and token ids in, the inputs of a graph out: only those that it declares, in its types.

use std::borrow::Cow;
use std::fmt::Debug;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::SessionInputValue;
use ort::value::{PrimitiveTensorElementType, Tensor, TensorElementType, TensorRef};

use super::graph::{Graph, Input};
use super::model::{ImageSide, ModelError, TextSide};
use super::tokenize::Tokens;

/// How images are fed.
pub(super) struct Pixels {
    pub name: String,
    kind: TensorElementType,
    axes: Axes,
    width: usize,
    height: usize,
    staging: Staging,
}

/// The order in which a graph takes the values of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axes {
    /// `[n, 3, height, width]`, which is what pixels come in.
    ChannelsFirst,
    /// `[n, height, width, 3]`.
    ChannelsLast,
}

impl Pixels {
    /// The input is what `model.toml` names, else `pixel_values`, else the only one.
    pub fn of(graph: &Graph, side: &ImageSide) -> Result<Pixels, ModelError> {
        let name = side.input.as_deref().unwrap_or(graph.only_input_or("pixel_values"));
        let kind = graph.input_type(name).ok_or_else(|| graph.no_input("pixels"))?;
        match kind {
            TensorElementType::Float32 | TensorElementType::Float16 | TensorElementType::Bfloat16 => {}
            // such a graph normalises by itself
            TensorElementType::Uint8 if side.preprocessing.keeps_values() => {}
            TensorElementType::Uint8 => {
                return Err(ModelError::WholePixels { graph: graph.path.clone(), input: name.to_owned() });
            }
            kind => {
                return Err(ModelError::Unsupported { setting: "pixel type", value: kind.to_string() });
            }
        }
        let (width, height) = side.preprocessing.size();
        let pixels = Pixels {
            name: name.to_owned(),
            kind,
            axes: match graph.input_shape(name).as_deref() {
                Some([_, channels, _, 3]) if *channels != 3 => Axes::ChannelsLast,
                _ => Axes::ChannelsFirst,
            },
            width: width as usize,
            height: height as usize,
            staging: Staging::of(graph),
        };
        pixels.check_shape(graph)?;
        Ok(pixels)
    }

    /// The shape of `n` images as the graph takes them.
    fn shape(&self, n: usize) -> [usize; 4] {
        match self.axes {
            Axes::ChannelsFirst => [n, 3, self.height, self.width],
            Axes::ChannelsLast => [n, self.height, self.width, 3],
        }
    }

    /// Refuses a graph whose input is fixed to another shape than what it would be given.
    fn check_shape(&self, graph: &Graph) -> Result<(), ModelError> {
        let Some(shape) = graph.input_shape(&self.name) else { return Ok(()) };
        let [_, given @ ..] = self.shape(1).map(|length| length as i64);
        let is_fit = shape.len() == 4
            && shape[1..].iter().zip(given).all(|(&fixed, given)| fixed < 0 || fixed == given);
        if is_fit {
            return Ok(());
        }
        let [first, second, third] = given;
        Err(input_shape(graph, &self.name, &shape, format!("[n, {first}, {second}, {third}]")))
    }

    pub fn blank(&self, n: usize) -> Vec<f32> {
        vec![0.0; n * 3 * self.height * self.width]
    }

    /// The input of `n` images, `pixels` being `[n, 3, height, width]`.
    pub fn input<'a>(&'a self, pixels: &'a [f32], n: usize) -> ort::Result<Input<'a>> {
        let shape = self.shape(n);
        assert_eq!(pixels.len(), shape.iter().product::<usize>(), "pixels of {n} images");
        let is_as_given = self.axes == Axes::ChannelsFirst && self.kind == TensorElementType::Float32;
        if is_as_given && matches!(self.staging, Staging::InPlace) {
            let value = TensorRef::from_array_view((shape, pixels))?.into();
            return Ok((Cow::Borrowed(self.name.as_str()), value));
        }
        let pixels: Cow<[f32]> = match self.axes {
            Axes::ChannelsFirst => pixels.into(),
            Axes::ChannelsLast => channels_last(pixels, self.width * self.height).into(),
        };
        let value: SessionInputValue = match self.kind {
            TensorElementType::Float16 => {
                let mut tensor = self.staging.tensor::<f16>(shape)?;
                tensor.extract_tensor_mut().1.convert_from_f32_slice(&pixels);
                tensor.into()
            }
            TensorElementType::Bfloat16 => {
                let mut tensor = self.staging.tensor::<bf16>(shape)?;
                tensor.extract_tensor_mut().1.convert_from_f32_slice(&pixels);
                tensor.into()
            }
            TensorElementType::Uint8 => {
                let mut tensor = self.staging.tensor::<u8>(shape)?;
                // whole numbers from 0 to 255 already
                let values = tensor.extract_tensor_mut().1.iter_mut().zip(&*pixels);
                values.for_each(|(value, &pixel)| *value = pixel as u8);
                tensor.into()
            }
            _ => {
                let mut tensor = self.staging.tensor::<f32>(shape)?;
                tensor.extract_tensor_mut().1.copy_from_slice(&pixels);
                tensor.into()
            }
        };
        Ok((Cow::Borrowed(self.name.as_str()), value))
    }
}

/// `[n, 3, plane]` → `[n, plane, 3]`.
fn channels_last(pixels: &[f32], plane: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(pixels.len());
    for image in pixels.chunks_exact(3 * plane) {
        values.extend((0..plane).flat_map(|at| [image[at], image[plane + at], image[2 * plane + at]]));
    }
    values
}

/// An input that takes another shape than it would be given.
fn input_shape(graph: &Graph, input: &str, shape: &[i64], given: String) -> ModelError {
    let axes = shape.iter().map(|&length| if length < 0 { "any".to_owned() } else { length.to_string() });
    let takes = format!("[{}]", axes.collect::<Vec<_>>().join(", "));
    ModelError::InputShape { graph: graph.path.clone(), input: input.to_owned(), takes, given }
}

/// From where a graph's place takes pixels.
enum Staging {
    /// From where they are.
    InPlace,
    /// From memory of this allocator: pages that do not move, which a GPU reads by itself at twice the rate.
    Copied(Allocator),
}

impl Staging {
    fn of(graph: &Graph) -> Staging {
        if !graph.place.is_gpu() {
            return Staging::InPlace;
        }
        let number = graph.place.number as i32;
        Staging::copied(graph, AllocationDevice::CUDA_PINNED, number).unwrap_or_else(|error| {
            tracing::debug!(%error, place = %graph.place, "no pinned memory: pixels go the slower way");
            Staging::InPlace
        })
    }

    /// A tensor without values yet.
    fn tensor<T: PrimitiveTensorElementType + Debug>(&self, shape: [usize; 4]) -> ort::Result<Tensor<T>> {
        match self {
            Staging::InPlace => Tensor::new(&Allocator::default(), shape),
            Staging::Copied(allocator) => Tensor::new(allocator, shape),
        }
    }

    fn copied(graph: &Graph, device: AllocationDevice<'static>, number: i32) -> ort::Result<Staging> {
        let memory = MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::CPUOutput)?;
        Allocator::new(&graph.session, memory).map(Staging::Copied)
    }
}

/// What a text graph can want of a caption.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenInput {
    Ids,
    Mask,
    Positions,
    Types,
}

/// How captions are fed: only what the graph declares.
pub(super) struct TokenInputs {
    inputs: Vec<(String, TokenInput, TensorElementType)>,
    context_length: usize,
    /// Whether the graph takes rows of the context length alone.
    pub has_fixed_length: bool,
}

impl TokenInputs {
    /// The ids' input is what `model.toml` names, else `input_ids`, else the only one.
    pub fn of(graph: &Graph, side: &TextSide) -> Result<TokenInputs, ModelError> {
        let ids = side.input.as_deref().unwrap_or(graph.only_input_or("input_ids"));
        let known = [
            (ids, TokenInput::Ids),
            ("attention_mask", TokenInput::Mask),
            ("position_ids", TokenInput::Positions),
            ("token_type_ids", TokenInput::Types),
        ];
        let mut inputs = Vec::new();
        for (name, input) in known {
            match graph.input_type(name) {
                Some(kind @ (TensorElementType::Int64 | TensorElementType::Int32)) => {
                    inputs.push((name.to_owned(), input, kind));
                }
                Some(kind) => {
                    return Err(ModelError::Unsupported { setting: "token type", value: kind.to_string() });
                }
                None if input == TokenInput::Ids => return Err(graph.no_input("token ids")),
                None => {}
            }
        }
        let context_length = side.preparation.context_length;
        let mut has_fixed_length = false;
        for (name, ..) in &inputs {
            let Some(shape) = graph.input_shape(name) else { continue };
            let is_fit = shape.len() == 2 && (shape[1] < 0 || shape[1] == context_length as i64);
            if !is_fit {
                return Err(input_shape(graph, name, &shape, format!("[n, {context_length}]")));
            }
            has_fixed_length |= shape[1] >= 0;
        }
        Ok(TokenInputs { inputs, context_length, has_fixed_length })
    }

    pub fn names(&self) -> Vec<&str> {
        self.inputs.iter().map(|(name, _, _)| name.as_str()).collect()
    }

    pub fn blank(&self, n: usize) -> Tokens {
        Tokens::blank(self.context_length, n)
    }

    pub fn inputs<'a>(&'a self, tokens: &'a Tokens) -> ort::Result<Vec<Input<'a>>> {
        assert!(tokens.length() <= self.context_length, "{} tokens", tokens.length());
        let shape = [tokens.n_rows(), tokens.length()];
        let mut all = Vec::with_capacity(self.inputs.len());
        for (name, input, kind) in &self.inputs {
            let values: Cow<[i64]> = match input {
                TokenInput::Ids => tokens.ids().into(),
                TokenInput::Mask => tokens.mask().into(),
                TokenInput::Positions => {
                    (0..tokens.n_rows()).flat_map(|_| 0..tokens.length() as i64).collect()
                }
                TokenInput::Types => vec![0; tokens.ids().len()].into(),
            };
            let value = match kind {
                TensorElementType::Int32 => {
                    Tensor::from_array((shape, values.iter().map(|&id| id as i32).collect::<Vec<_>>()))?
                        .into_dyn()
                }
                _ => Tensor::from_array((shape, values.into_owned()))?.into_dyn(),
            };
            all.push((Cow::Borrowed(name.as_str()), value.into()));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::embed::Model;
    use crate::embed::model::{ModelChoice, ModelParts};
    use crate::embed::session::SessionSettings;
    use crate::runtime::Place;

    #[test]
    fn pixels_through_an_allocator_are_the_same_pixels() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models/learner");
        let model = Model::open(&folder, ModelChoice::default()).unwrap();
        let ModelParts::Pair { image, .. } = &model.parts else { panic!("the fixture has both towers") };
        let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
        let mut graph = Graph::open(&model, &image.graph, "image", &settings).unwrap();
        let mut pixels = Pixels::of(&graph, image).unwrap();
        let values: Vec<f32> =
            (0..2 * 3 * pixels.width * pixels.height).map(|i| (i as f32 * 0.37).sin()).collect();
        let run = |pixels: &Pixels, graph: &mut Graph| {
            let [rows] = graph.run(vec![pixels.input(&values, 2).unwrap()], ["image_embeds"], 2).unwrap();
            rows
        };
        let in_place = run(&pixels, &mut graph);
        pixels.staging = Staging::copied(&graph, AllocationDevice::CPU, 0).unwrap();
        assert_eq!(run(&pixels, &mut graph), in_place);
    }
}
