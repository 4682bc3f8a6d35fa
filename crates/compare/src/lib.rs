//! Is identity kept? The same faces and prompts through several methods, measured by networks that steer none of them.
//!
//! Modules stand in the order in which data flows: who looks ([`Eyes`]), the people ([`Person`], [`Gallery`]), the
//! methods as a table ([`METHODS`]), the pictures made one by one ([`Run`]), what each measures ([`Measures`]) and what
//! comes of it ([`Summary`]). Nothing here prints or writes; pictures are handed to the caller as they are made.

mod error;
mod eyes;
mod methods;
mod people;

mod content;
mod measure;
mod run;
mod summary;

pub use error::{Error, Result};
pub use eyes::Eyes;
pub use measure::Measures;
pub use methods::{Column, METHODS, Method, Setting, columns};
pub use people::{Gallery, Known, Person};
pub use run::{Cell, Comparison, Made, Prompt, Run};
pub use summary::{Reality, Summary, reality, summaries};
