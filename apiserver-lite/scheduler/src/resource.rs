//! Amounts of resources as plain integers, for quick comparison.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use rkube_api::pod::resources::Amounts;
use rkube_api::quantity::Quantity;

/// What a pod asks for, or a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Processor time, in thousandths of a core.
    pub milli_cpu: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Local storage, in bytes.
    pub ephemeral_bytes: i64,
    /// How many pods a node takes; 0 for a pod.
    pub pods: i64,
    /// Huge pages and extended resources, in whole units.
    pub scalar: BTreeMap<String, i64>,
}

impl Resources {
    /// From the amounts of a pod.
    #[must_use]
    pub fn of_amounts(amounts: &Amounts) -> Self {
        let mut sum = Self::default();
        for (name, quantity) in amounts {
            sum.put(name, *quantity);
        }
        sum
    }

    /// From a node's `allocatable`; what does not read counts as absent.
    #[must_use]
    pub fn of_texts(texts: &BTreeMap<String, Text>) -> Self {
        let mut sum = Self::default();
        for (name, text) in texts {
            if let Ok(quantity) = text.0.parse() {
                sum.put(name, quantity);
            }
        }
        sum
    }

    fn put(&mut self, name: &str, quantity: Quantity) {
        match name {
            "cpu" => self.milli_cpu = quantity.milli_value(),
            "memory" => self.memory_bytes = quantity.value(),
            "ephemeral-storage" => self.ephemeral_bytes = quantity.value(),
            "pods" => self.pods = quantity.value(),
            _ => {
                self.scalar.insert(name.to_owned(), quantity.value());
            }
        }
    }

    /// Adds what a pod takes.
    pub fn add(&mut self, other: &Self) {
        self.change(other, 1);
    }

    /// Takes off what a pod took.
    pub fn subtract(&mut self, other: &Self) {
        self.change(other, -1);
    }

    fn change(&mut self, other: &Self, sign: i64) {
        let by = |own: &mut i64, amount: i64| *own = own.saturating_add(amount * sign);
        by(&mut self.milli_cpu, other.milli_cpu);
        by(&mut self.memory_bytes, other.memory_bytes);
        by(&mut self.ephemeral_bytes, other.ephemeral_bytes);
        for (name, amount) in &other.scalar {
            by(self.scalar.entry(name.clone()).or_default(), *amount);
        }
    }
}
