//! What can go wrong with a tensor.

/// An error of the tensor crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The number of values is not that of the shape.
    #[error("shape {shape:?} calls for {expected} {what}, {found} given")]
    Length {
        /// What was counted: values, code bytes or scales.
        what: &'static str,
        /// The shape.
        shape: Vec<usize>,
        /// How many it calls for.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The blocks were to run along an axis the shape does not have.
    #[error("axis {axis} of shape {shape:?}: it has axes 0 to {last}", last = shape.len().saturating_sub(1))]
    Axis {
        /// The axis asked for.
        axis: usize,
        /// The shape.
        shape: Vec<usize>,
    },
    /// A shape whose elements cannot be counted.
    #[error("shape {0:?} is empty or too large")]
    Shape(Vec<usize>),
    /// A block size of zero.
    #[error("a block holds at least one value; use 32, the specification's size")]
    BlockSize,
    /// Two operands that cannot be multiplied.
    #[error("cannot multiply {left:?} by {right:?}: {reason}")]
    Product {
        /// Shape of the left operand.
        left: Vec<usize>,
        /// Shape of the right operand.
        right: Vec<usize>,
        /// Why not.
        reason: &'static str,
    },
}
