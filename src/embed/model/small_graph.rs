//! Small ONNX files for tests, written field by field.

/// An ONNX model under construction.
#[derive(Clone, Default)]
pub struct SmallGraph {
    graph: Vec<u8>,
}

/// Element types of ONNX.
pub const FLOAT: u64 = 1;
pub const UINT8: u64 = 2;
pub const INT64: u64 = 7;
pub const FLOAT16: u64 = 10;
pub const BFLOAT16: u64 = 16;

impl SmallGraph {
    /// An input; an axis of −1 takes any length.
    pub fn input(self, name: &str, kind: u64, shape: &[i64]) -> SmallGraph {
        self.part(11, &value_info(name, kind, shape))
    }

    pub fn output(self, name: &str, kind: u64, shape: &[i64]) -> SmallGraph {
        self.part(12, &value_info(name, kind, shape))
    }

    pub fn node(self, operator: &str, inputs: &[&str], outputs: &[&str]) -> SmallGraph {
        self.node_with(operator, inputs, outputs, &[])
    }

    /// A node with attributes, made by [`ints`] and [`int`].
    pub fn node_with(
        self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Vec<u8>],
    ) -> SmallGraph {
        let mut node = Vec::new();
        inputs.iter().for_each(|name| put_bytes(&mut node, 1, name.as_bytes()));
        outputs.iter().for_each(|name| put_bytes(&mut node, 2, name.as_bytes()));
        put_bytes(&mut node, 4, operator.as_bytes());
        attributes.iter().for_each(|attribute| put_bytes(&mut node, 5, attribute));
        self.part(1, &node)
    }

    /// Weights in `raw_data`.
    pub fn floats(self, name: &str, shape: &[i64], values: &[f32]) -> SmallGraph {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.part(5, &tensor(name, FLOAT, shape, &raw))
    }

    pub fn integers(self, name: &str, shape: &[i64], values: &[i64]) -> SmallGraph {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.part(5, &tensor(name, INT64, shape, &raw))
    }

    pub fn raw(self, name: &str, kind: u64, shape: &[i64], raw: &[u8]) -> SmallGraph {
        self.part(5, &tensor(name, kind, shape, raw))
    }

    /// Weights that lie in another file.
    pub fn external(self, name: &str, shape: &[i64], location: &str) -> SmallGraph {
        let mut weights = tensor(name, FLOAT, shape, &[]);
        let mut pair = Vec::new();
        put_bytes(&mut pair, 1, b"location");
        put_bytes(&mut pair, 2, location.as_bytes());
        put_bytes(&mut weights, 13, &pair);
        put_number(&mut weights, 14, 1);
        self.part(5, &weights)
    }

    /// The file's bytes.
    pub fn build(self) -> Vec<u8> {
        let mut model = Vec::new();
        put_number(&mut model, 1, 8); // version of the format
        put_bytes(&mut model, 7, &self.graph);
        let mut operators = Vec::new();
        put_number(&mut operators, 2, 17);
        put_bytes(&mut model, 8, &operators);
        model
    }

    pub fn part(mut self, field: u64, bytes: &[u8]) -> SmallGraph {
        put_bytes(&mut self.graph, field, bytes);
        self
    }
}

/// An attribute that is a list of integers.
pub fn ints(name: &str, values: &[i64]) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 1, name.as_bytes());
    values.iter().for_each(|&value| put_number(&mut attribute, 8, value as u64));
    put_number(&mut attribute, 20, 7);
    attribute
}

/// An attribute that is an integer.
pub fn int(name: &str, value: i64) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 1, name.as_bytes());
    put_number(&mut attribute, 3, value as u64);
    put_number(&mut attribute, 20, 2);
    attribute
}

/// An attribute that is a graph.
pub fn subgraph(name: &str, graph: SmallGraph) -> Vec<u8> {
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 1, name.as_bytes());
    put_bytes(&mut attribute, 6, &graph.graph);
    put_number(&mut attribute, 20, 5);
    attribute
}

fn value_info(name: &str, kind: u64, shape: &[i64]) -> Vec<u8> {
    let mut axes = Vec::new();
    for &length in shape {
        let mut axis = Vec::new();
        match length {
            -1 => put_bytes(&mut axis, 2, b"any"),
            length => put_number(&mut axis, 1, length as u64),
        }
        put_bytes(&mut axes, 1, &axis);
    }
    let mut tensor = Vec::new();
    put_number(&mut tensor, 1, kind);
    put_bytes(&mut tensor, 2, &axes);
    let mut value_type = Vec::new();
    put_bytes(&mut value_type, 1, &tensor);
    let mut info = Vec::new();
    put_bytes(&mut info, 1, name.as_bytes());
    put_bytes(&mut info, 2, &value_type);
    info
}

fn tensor(name: &str, kind: u64, shape: &[i64], raw: &[u8]) -> Vec<u8> {
    let mut tensor = Vec::new();
    shape.iter().for_each(|&length| put_number(&mut tensor, 1, length as u64));
    put_number(&mut tensor, 2, kind);
    put_bytes(&mut tensor, 8, name.as_bytes());
    if !raw.is_empty() {
        put_bytes(&mut tensor, 9, raw);
    }
    tensor
}

pub fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
