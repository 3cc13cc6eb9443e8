//! Whether cheating pays: a market of honest miners and one who cheats, settled by the real settlement.
//!
//! A run is one market for many epochs of six hours. What is there is honest but for one miner, the *seat*, which has
//! eight hosts and a [`Strategy`]. Everything is a function of the [`Scenario`]; money is in integers, as everywhere.
//! How attacks are found out is an assumption, stated where it is made, and mostly in the attacker's favour.

mod books;
mod draw;
pub mod report;
mod scenario;
mod seat;
mod step;
mod world;

pub use books::{ClassPay, Outcome, Purse};
pub use scenario::{Demand, Hardware, Regime, Rules, Scenario, Strategy};

/// Runs one scenario.
///
/// # Errors
/// Where settlement refuses the evidence.
pub fn run(scenario: &Scenario) -> Result<Outcome, nave_settlement::Error> {
    let mut world = world::World::new(scenario.clone());
    let mut books = books::Books::new(&world);
    for _ in 0..scenario.epochs {
        for _ in 0..world::EPOCH_MS / world::STEP_MS {
            world.step();
        }
        books.close(&mut world)?;
    }
    Ok(books.finish(&world))
}
