//! The messages of an ONNX file in, what is known of its graph out. Field numbers are those of `onnx.proto`.

use std::collections::BTreeSet;

use half::{bf16, f16};

use super::wire::{Span, Value, Wire, WireError};
use super::{GraphFile, GraphInput, Node};

/// Of one name; exporters build names from module paths.
const NAME_BYTES_MAX: u64 = 1 << 16;
/// Nodes and weights together: a hundred times those of the largest towers.
const PARTS_MAX: u64 = 1 << 20;
/// Graphs in graphs, as the branches of a condition are.
const DEPTH_MAX: usize = 32;
/// All names together.
const ALL_NAMES_BYTES_MAX: u64 = 64 << 20;
/// Files of weights beside a graph.
const EXTERNAL_FILES_MAX: usize = 1024;

/// Operators that can stand between a scalar and the logits; other nodes are not kept.
const KEPT_OPERATORS: [&str; 9] =
    ["Add", "Cast", "Exp", "Identity", "Mul", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// A tensor without its elements, but for the only one of a scalar.
#[derive(Default)]
struct Tensor {
    name: String,
    scalar: Option<f64>,
}

/// A file on its way to a [`GraphFile`].
pub(super) struct Reader {
    wire: Wire,
    file: GraphFile,
    /// Names of the main graph's weights.
    weights: BTreeSet<String>,
    n_parts: u64,
    n_name_bytes: u64,
}

impl Reader {
    pub fn new(wire: Wire) -> Reader {
        Reader { wire, file: GraphFile::default(), weights: BTreeSet::new(), n_parts: 0, n_name_bytes: 0 }
    }

    /// Reads the model that a span holds.
    pub fn read(mut self, all: Span) -> Result<GraphFile, WireError> {
        self.model(all)?;
        self.file.inputs.retain(|input| !self.weights.contains(&input.name));
        Ok(self.file)
    }

    /// Calls `take` with every field of a message.
    fn each(
        &mut self,
        message: Span,
        mut take: impl FnMut(&mut Reader, u32, Value) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let mut at = message.start;
        while let Some((number, value)) = self.wire.field(message, &mut at)? {
            take(self, number, value)?;
        }
        Ok(())
    }

    fn model(&mut self, model: Span) -> Result<(), WireError> {
        let mut has_graph = false;
        self.each(model, |reader, number, value| match number {
            7 => {
                has_graph = true;
                reader.graph(value.span()?, 0)
            }
            20 => reader.each(value.span()?, |reader, number, value| match number {
                1 | 2 => reader.graph(value.span()?, 1), // training
                _ => Ok(()),
            }),
            25 => reader.each(value.span()?, |reader, number, value| match number {
                7 => reader.node(value.span()?, 1), // a function
                _ => Ok(()),
            }),
            _ => Ok(()),
        })?;
        if has_graph { Ok(()) } else { Err(WireError::Malformed("it holds no graph")) }
    }

    /// A graph; the main one, at depth 0, is what the file's inputs, outputs and constants are of.
    fn graph(&mut self, graph: Span, depth: usize) -> Result<(), WireError> {
        if depth > DEPTH_MAX {
            return Err(WireError::TooMany { what: "levels of graphs", max: DEPTH_MAX as u64 });
        }
        self.each(graph, |reader, number, value| {
            match number {
                1 => reader.node(value.span()?, depth)?,
                5 => {
                    let tensor = reader.tensor(value.span()?)?;
                    if depth == 0 {
                        reader.weight(tensor);
                    }
                }
                11 if depth == 0 => {
                    let input = reader.input(value.span()?)?;
                    reader.file.inputs.push(input);
                }
                12 if depth == 0 => {
                    let output = reader.input(value.span()?)?;
                    reader.file.outputs.push(output.name);
                }
                15 => {
                    reader.sparse_tensor(value.span()?)?;
                }
                _ => {}
            }
            Ok(())
        })
    }

    fn weight(&mut self, tensor: Tensor) {
        if let Some(scalar) = tensor.scalar {
            self.file.scalars.insert(tensor.name.clone(), scalar);
        }
        self.weights.insert(tensor.name);
    }

    fn node(&mut self, node: Span, depth: usize) -> Result<(), WireError> {
        self.count_part()?;
        let mut read = Node::default();
        let mut constant = None;
        self.each(node, |reader, number, value| {
            match number {
                1 => read.inputs.push(reader.name(value)?),
                2 => read.outputs.push(reader.name(value)?),
                4 => read.operator = reader.name(value)?,
                5 => constant = reader.attribute(value.span()?, depth)?.or(constant),
                _ => {}
            }
            Ok(())
        })?;
        if depth > 0 {
            return Ok(());
        }
        match (read.operator.as_str(), constant, read.outputs.first()) {
            ("Constant", Some(constant), Some(output)) => {
                self.file.scalars.insert(output.clone(), constant);
            }
            (operator, ..) if KEPT_OPERATORS.contains(&operator) => self.file.nodes.push(read),
            _ => {}
        }
        Ok(())
    }

    /// An attribute of a node; its value, if that is one floating-point number.
    fn attribute(&mut self, attribute: Span, depth: usize) -> Result<Option<f64>, WireError> {
        let mut scalar = None;
        self.each(attribute, |reader, number, value| {
            match (number, value) {
                (2, Value::Fixed32(bits)) => scalar = Some(f64::from(f32::from_bits(bits))),
                (5, _) => scalar = reader.tensor(value.span()?)?.scalar,
                (6 | 11, _) => reader.graph(value.span()?, depth + 1)?,
                (10, _) => drop(reader.tensor(value.span()?)?),
                (22 | 23, _) => reader.sparse_tensor(value.span()?)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(scalar)
    }

    fn sparse_tensor(&mut self, tensor: Span) -> Result<(), WireError> {
        self.each(tensor, |reader, number, value| match number {
            1 | 2 => reader.tensor(value.span()?).map(drop),
            _ => Ok(()),
        })
    }

    fn tensor(&mut self, tensor: Span) -> Result<Tensor, WireError> {
        self.count_part()?;
        let mut read = Tensor::default();
        let mut n_elements: u64 = 1;
        let mut data_type = 0;
        let mut elements = None;
        self.each(tensor, |reader, number, value| {
            let mut length = |dim: u64| n_elements = n_elements.saturating_mul(dim);
            match (number, value) {
                (1, Value::Varint(dim)) => length(dim),
                (1, _) => reader.wire.packed(value.span()?, length)?,
                (2, _) => data_type = value.integer()?,
                (4, Value::Fixed32(bits)) => elements = Some(Elements::Bits(u64::from(bits))),
                (10, Value::Fixed64(bits)) => elements = Some(Elements::Bits(bits)),
                // a half stands in the lower bits of an int32
                (5, Value::Varint(bits)) => elements = Some(Elements::Bits(bits)),
                (4 | 5 | 9 | 10, Value::Bytes(span)) => elements = Some(Elements::of(number, span)),
                (8, _) => read.name = reader.name(value)?,
                (13, _) => reader.external_data(value.span()?)?,
                _ => {}
            }
            Ok(())
        })?;
        if n_elements == 1
            && let Some(elements) = elements
        {
            read.scalar = self.scalar(data_type, elements)?;
        }
        Ok(read)
    }

    /// The only element of a tensor, if it is a floating-point number.
    fn scalar(&mut self, data_type: i64, elements: Elements) -> Result<Option<f64>, WireError> {
        let bits = match elements {
            Elements::Bits(bits) => bits,
            Elements::Packed(span) => {
                let mut bits = 0;
                self.wire.packed(span, |value| bits = value)?;
                bits
            }
            Elements::Raw(span) if span.len() <= 8 => {
                let mut raw = [0; 8];
                let bytes = self.wire.bytes(span, "bytes of a number", 8)?;
                raw[..bytes.len()].copy_from_slice(&bytes);
                u64::from_le_bytes(raw)
            }
            Elements::Raw(_) => return Ok(None),
        };
        Ok(match data_type {
            1 => Some(f64::from(f32::from_bits(bits as u32))),
            10 => Some(f16::from_bits(bits as u16).to_f64()),
            11 => Some(f64::from_bits(bits)),
            16 => Some(bf16::from_bits(bits as u16).to_f64()),
            _ => None,
        })
    }

    /// A key and its value; the key `location` names the file with the tensor's data.
    fn external_data(&mut self, pair: Span) -> Result<(), WireError> {
        let (mut key, mut text) = (String::new(), String::new());
        self.each(pair, |reader, number, value| {
            match number {
                1 => key = reader.name(value)?,
                2 => text = reader.name(value)?,
                _ => {}
            }
            Ok(())
        })?;
        if key == "location" {
            self.file.external_files.insert(text);
            if self.file.external_files.len() > EXTERNAL_FILES_MAX {
                return Err(WireError::TooMany { what: "files of weights", max: EXTERNAL_FILES_MAX as u64 });
            }
        }
        Ok(())
    }

    /// An input or output with its shape.
    fn input(&mut self, value_info: Span) -> Result<GraphInput, WireError> {
        let mut input = GraphInput { name: String::new(), shape: Vec::new() };
        self.each(value_info, |reader, number, value| {
            match number {
                1 => input.name = reader.name(value)?,
                2 => reader.shape(value.span()?, &mut input.shape)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(input)
    }

    /// The axes of a tensor type: `tensor_type`, in it `shape`, in it a `dim` each.
    fn shape(&mut self, value_type: Span, shape: &mut Vec<Option<u64>>) -> Result<(), WireError> {
        self.each(value_type, |reader, number, value| match number {
            1 => reader.each(value.span()?, |reader, number, value| match number {
                2 => reader.each(value.span()?, |reader, number, value| {
                    if number == 1 {
                        reader.count_part()?;
                        shape.push(None);
                        reader.each(value.span()?, |_, number, value| {
                            if let (1, Value::Varint(length)) = (number, value) {
                                *shape.last_mut().expect("pushed above") = Some(length);
                            }
                            Ok(())
                        })?;
                    }
                    Ok(())
                }),
                _ => Ok(()),
            }),
            _ => Ok(()),
        })
    }

    fn name(&mut self, value: Value) -> Result<String, WireError> {
        self.count_part()?;
        let span = value.span()?;
        self.n_name_bytes += span.len();
        if self.n_name_bytes > ALL_NAMES_BYTES_MAX {
            return Err(WireError::TooMany { what: "bytes of names", max: ALL_NAMES_BYTES_MAX });
        }
        self.wire.text(span, NAME_BYTES_MAX)
    }

    fn count_part(&mut self) -> Result<(), WireError> {
        self.n_parts += 1;
        if self.n_parts > PARTS_MAX {
            return Err(WireError::TooMany { what: "nodes, weights and names", max: PARTS_MAX });
        }
        Ok(())
    }
}

/// Where the elements of a tensor stand.
#[derive(Clone, Copy)]
enum Elements {
    Bits(u64),
    /// Little-endian.
    Raw(Span),
    Packed(Span),
}

impl Elements {
    fn of(field: u32, span: Span) -> Elements {
        if field == 5 { Elements::Packed(span) } else { Elements::Raw(span) }
    }
}
