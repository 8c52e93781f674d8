//! A small graph in, the bytes of its ONNX file out: for algebra that is to run where models run.
//!
//! # Source
//!
//! onnx.proto3 of ONNX 1.17, whose field numbers stand beside the fields below.

/// Element types, by ONNX's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32 = 1,
    I64 = 7,
    F16 = 10,
}

/// A tensor that goes into or comes out of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub name: &'a str,
    pub element: Element,
    /// Each a number, or a name for one that is known when the graph runs.
    pub shape: &'a [&'a str],
}

/// An ONNX graph in the making.
#[derive(Debug, Default)]
pub struct GraphBytes {
    graph: Message,
    n_nodes: usize,
}

/// Opset 17 has all that is used here, and every runtime since 1.12 has it.
const OPSET: u64 = 17;
const IR_VERSION: u64 = 8;

impl GraphBytes {
    pub fn input(&mut self, operand: Operand) -> &mut GraphBytes {
        self.graph.message(11, &operand.value_info());
        self
    }

    pub fn output(&mut self, operand: Operand) -> &mut GraphBytes {
        self.graph.message(12, &operand.value_info());
        self
    }

    /// A node with integer attributes.
    pub fn node(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[(&str, i64)],
    ) -> &mut GraphBytes {
        let mut node = self.named_node(operator);
        inputs.iter().for_each(|input| node.bytes(1, input.as_bytes()));
        outputs.iter().for_each(|output| node.bytes(2, output.as_bytes()));
        for (name, value) in attributes {
            let mut attribute = Message::default();
            attribute.bytes(1, name.as_bytes());
            attribute.number(3, *value as u64); // i
            attribute.number(20, 2); // type INT
            node.message(5, &attribute);
        }
        self.push_node(&node)
    }

    /// A reduction over axes that drops them, for operators that take axes as an attribute.
    pub fn reduction(&mut self, operator: &str, input: &str, output: &str, axes: &[i64]) -> &mut GraphBytes {
        let mut node = self.named_node(operator);
        node.bytes(1, input.as_bytes());
        node.bytes(2, output.as_bytes());
        let (mut over, mut keep) = (Message::default(), Message::default());
        over.bytes(1, b"axes");
        axes.iter().for_each(|axis| over.number(8, *axis as u64)); // ints
        over.number(20, 7); // type INTS
        keep.bytes(1, b"keepdims");
        keep.number(3, 0);
        keep.number(20, 2);
        node.message(5, &over);
        node.message(5, &keep);
        self.push_node(&node)
    }

    fn named_node(&self, operator: &str) -> Message {
        let mut node = Message::default();
        node.bytes(3, format!("{operator}_{}", self.n_nodes).as_bytes());
        node.bytes(4, operator.as_bytes());
        node
    }

    fn push_node(&mut self, node: &Message) -> &mut GraphBytes {
        self.n_nodes += 1;
        self.graph.message(1, node);
        self
    }

    /// A constant.
    pub fn integers(&mut self, name: &str, values: &[i64]) -> &mut GraphBytes {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, Element::I64, values.len(), &raw)
    }

    fn initializer(&mut self, name: &str, element: Element, n: usize, raw: &[u8]) -> &mut GraphBytes {
        let mut tensor = Message::default();
        tensor.number(1, n as u64); // dims
        tensor.number(2, element as u64);
        tensor.bytes(8, name.as_bytes());
        tensor.bytes(9, raw);
        self.graph.message(5, &tensor);
        self
    }

    /// The bytes of the file.
    pub fn finish(&mut self) -> Vec<u8> {
        self.graph.bytes(2, b"superbatch");
        let (mut model, mut opset) = (Message::default(), Message::default());
        opset.number(2, OPSET);
        model.number(1, IR_VERSION);
        model.message(7, &self.graph);
        model.message(8, &opset);
        model.0
    }
}

impl Operand<'_> {
    fn value_info(&self) -> Message {
        let mut shape = Message::default();
        for size in self.shape {
            let mut dim = Message::default();
            match size.parse() {
                Ok(size) => dim.number(1, size),
                Err(_) => dim.bytes(2, size.as_bytes()),
            }
            shape.message(1, &dim);
        }
        let (mut tensor, mut kind, mut info) = (Message::default(), Message::default(), Message::default());
        tensor.number(1, self.element as u64);
        tensor.message(2, &shape);
        kind.message(1, &tensor);
        info.bytes(1, self.name.as_bytes());
        info.message(2, &kind);
        info
    }
}

/// A protocol buffer's message.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use ort::value::TensorRef;

    use super::*;
    use crate::runtime::{Place, SessionOptions, open_bytes};

    #[test]
    fn the_runtime_runs_what_was_written() {
        let operand = |name, shape| Operand { name, element: Element::F32, shape };
        let bytes = GraphBytes::default()
            .input(operand("a", &["n", "300"]))
            .input(operand("b", &["300", "2"]))
            .integers("axes", &[0])
            .node("MatMul", &["a", "b"], &["product"], &[])
            .node("ReduceSum", &["product", "axes"], &["sums"], &[("keepdims", 0)])
            .output(operand("sums", &["2"]))
            .finish();
        let mut opened = open_bytes(&bytes, &SessionOptions::on(Place::CPU)).unwrap();
        let (a, b) = (vec![1.0f32; 3 * 300], [vec![2.0f32; 300], vec![0.5f32; 300]].concat());
        let a = TensorRef::from_array_view(([3usize, 300], &a[..])).unwrap();
        let b = TensorRef::from_array_view(([300usize, 2], &b[..])).unwrap();
        let outputs = opened.session.run(ort::inputs!["a" => a, "b" => b]).unwrap();
        // b is [2.0, 2.0] in its first 150 rows and [0.5, 0.5] in the others
        let sums = outputs["sums"].try_extract_tensor::<f32>().unwrap().1;
        assert_eq!(sums, [3.0 * 375.0, 3.0 * 375.0]);
        assert_eq!(opened.nodes.totals().values().sum::<usize>(), 2, "{:?}", opened.nodes);
    }
}
