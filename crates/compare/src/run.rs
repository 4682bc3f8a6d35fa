//! The pictures of a comparison, made one by one with networks that stay loaded.

use crate::measure::Measures;
use crate::methods::{Column, Setting};
use crate::people::{Gallery, Person};
use crate::{Error, Eyes, Result};
use engine::{Observer, Picture, Plan, Request, Session};
use faces::RgbImage;
use std::collections::BTreeMap;
use std::time::Instant;

/// A prompt, and what it asks for where that is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// The words.
    pub text: String,
    /// Attribute and choice, by the judge's names; empty for free text.
    pub asks: BTreeMap<String, String>,
}

/// What is compared.
pub struct Comparison {
    /// Whose pictures are made.
    pub people: Vec<Person>,
    /// Whose embedding is put in place of the others'; needed where there is one person alone.
    pub stranger: Option<Person>,
    /// In which scenes.
    pub prompts: Vec<Prompt>,
    /// How many prompts each person gets, in turn; all of them if `None`.
    pub per_face: Option<usize>,
    /// By which methods.
    pub columns: Vec<Column>,
    /// Settings, models and the first seed; every row has its own, which all columns share.
    pub request: Request,
}

/// One picture of a comparison, by its places in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Counted over faces and prompts.
    pub row: usize,
    /// Who.
    pub person: usize,
    /// Where.
    pub prompt: usize,
    /// How.
    pub column: usize,
}

impl Comparison {
    /// All pictures, row by row.
    pub fn cells(&self) -> Vec<Cell> {
        let each = self.per_face.unwrap_or(self.prompts.len()).min(self.prompts.len());
        let rows = (0..self.people.len())
            .flat_map(|person| (0..each).map(move |i| (person, i)))
            // Who gets only some of the prompts gets others than the one before.
            .map(|(person, i)| (person, (person * each + i) % self.prompts.len()));
        let columns = 0..self.columns.len();
        rows.enumerate()
            .flat_map(|(row, (person, prompt))| columns.clone().map(move |column| Cell { row, person, prompt, column }))
            .collect()
    }

    fn stranger_to(&self, person: usize) -> Option<&Person> {
        match self.people.len() {
            1 => self.stranger.as_ref(),
            count => self.people.get((person + count / 2) % count),
        }
    }

    /// The request for one picture.
    fn request(&self, cell: Cell) -> Request {
        let mut request = self.request.clone();
        request.prompt = self.prompts[cell.prompt].text.clone();
        request.faces = vec![self.people[cell.person].file.clone()];
        request.seed = request.seed.map(|seed| seed.wrapping_add(cell.row as u64));
        let column = &self.columns[cell.column];
        let stranger = self.stranger_to(cell.person).map(|stranger| stranger.file.as_path());
        (column.method.apply)(&mut request, &Setting { scale: column.scale, stranger });
        request
    }
}

/// A finished picture with its measures.
pub struct Made {
    /// The picture.
    pub picture: Picture,
    /// How it was made.
    pub plan: Plan,
    /// What it measures.
    pub measures: Measures,
}

/// A comparison under way.
pub struct Run<'a> {
    comparison: &'a Comparison,
    eyes: &'a Eyes,
    /// Opened for the first picture: a comparison that is finished needs no networks.
    session: Option<Session>,
    /// The people compared, then the crowd.
    everybody: Gallery,
    /// Where each of the people compared stands among everybody.
    places: Vec<Option<usize>>,
}

impl<'a> Run<'a> {
    /// `crowd` are people among whom the judge must find the right one, beside those compared.
    ///
    /// # Errors
    /// Nothing to compare.
    pub fn new(comparison: &'a Comparison, crowd: Gallery, eyes: &'a Eyes) -> Result<Run<'a>> {
        if comparison.people.is_empty() || comparison.prompts.is_empty() {
            return Err(Error::Refused("a comparison needs at least one face and one prompt".into()));
        }
        if (0..comparison.people.len()).any(|person| comparison.stranger_to(person).is_none())
            && comparison.columns.iter().any(|column| column.method.needs_stranger)
        {
            return Err(Error::Refused("the control with another person's embedding needs a second face".into()));
        }
        let mut everybody = Gallery::default();
        let mut places = Vec::new();
        for centre in comparison.people.iter().map(Person::centre) {
            places.push(centre.is_some().then_some(everybody.centres.len()));
            everybody.centres.extend(centre);
        }
        everybody.centres.extend(crowd.centres);
        Ok(Run { comparison, eyes, session: None, everybody, places })
    }

    /// The networks, opened when they are first needed.
    fn session(&mut self) -> Result<&mut Session> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut whole = self.comparison.request.clone();
                whole.faces = vec![self.comparison.people[0].file.clone()];
                Session::open(&whole, true)?
            }
        };
        Ok(self.session.insert(session))
    }

    /// How many people are at hand.
    pub fn people_at_hand(&self) -> usize {
        self.everybody.len()
    }

    /// Makes one picture and looks at it.
    ///
    /// # Errors
    /// Models that cannot be used, a picture that cannot be made, or the caller stops it.
    pub fn make(&mut self, cell: Cell, observe: &mut Observer) -> Result<Made> {
        let Comparison { people, prompts, columns, .. } = self.comparison;
        let request = self.comparison.request(cell);
        let session = self.session()?;
        let begin = Instant::now();
        let output = session.generate(&request, observe)?;
        let seconds = begin.elapsed().as_secs_f64();
        let (Some(picture), plan) = (output.pictures.into_iter().next(), output.plan) else {
            return Err(Error::Refused("no picture was asked for".into()));
        };
        let person = &people[cell.person];
        let (width, height) = (picture.width, picture.height);
        let placed = match (person.identity.kps, person.identity.size) {
            (Some(kps), Some(size)) => faces::place_keypoints(&kps, size, (width, height))?,
            (Some(kps), None) => kps,
            (None, _) => return Err(Error::Refused(format!("{}: the place of the face is not known", person.name))),
        };
        let Some(image) = RgbImage::from_raw(width, height, picture.rgb.clone()) else {
            return Err(Error::Refused("the picture's size does not fit its pixels".into()));
        };
        let needs = columns[cell.column].method.needs_stranger;
        let stranger = self.comparison.stranger_to(cell.person).filter(|_| needs);
        let prompt = &prompts[cell.prompt];
        let who = self.places[cell.person];
        let measures =
            Measures::of(&image, person, stranger, prompt, &placed, who, &self.everybody, self.eyes, seconds)?;
        Ok(Made { picture, plan, measures })
    }
}
